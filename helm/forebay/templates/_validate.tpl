{{/* What the schema cannot say: values that contradict each other. Each failure names them. */}}

{{/* Bytes of "512MiB", "1Gi", "1G" or "1000". */}}
{{- define "forebay.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]+" $text -}}
{{- $unit := $text | trimPrefix $number | trim | trimSuffix "B" -}}
{{- $powers := dict "" 1 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776
  "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- if or (not $number) (not (hasKey $powers $unit)) -}}
{{- fail (printf "%q is no whole number of bytes with one of the units Ki, Mi, Gi, Ti, k, M, G, T" $text) -}}
{{- end -}}
{{ mul (int64 $number) (get $powers $unit) }}
{{- end -}}

{{/* (list root component bytes what): the memory limit must leave room beside the budgets. */}}
{{- define "forebay.validateMemory" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $limit := dig "resources" "limits" "memory" "" (get $root.Values $component) -}}
{{- if $limit -}}
{{- $needed := add (index . 2) 67108864 -}}
{{- if gt (int64 $needed) (int64 (include "forebay.bytes" $limit)) -}}
{{- fail (printf "%s.resources.limits.memory = %v is less than %s and 64MiB for everything else: %d bytes" $component $limit (index . 3) $needed) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "forebay.validate" -}}
{{- $values := .Values -}}
{{- $replicas := int $values.cluster.replicas -}}
{{- $quorum := int $values.cluster.ackQuorum -}}
{{- if or (gt $quorum $replicas) (le (mul 2 $quorum) $replicas) -}}
{{- fail (printf "cluster.ackQuorum = %d must be more than half of cluster.replicas = %d, and not more than it" $quorum $replicas) -}}
{{- end -}}
{{- if lt (int $values.storage.replicas) $replicas -}}
{{- fail (printf "storage.replicas = %d is less than cluster.replicas = %d: each replica of a segment needs a storage node of its own" (int $values.storage.replicas) $replicas) -}}
{{- end -}}
{{- if gt (int $values.storage.pdb.maxUnavailable) (max 1 (sub $replicas $quorum) | int) -}}
{{- fail (printf "storage.pdb.maxUnavailable = %d would let an eviction take the quorum: %d of %d replicas must stay" (int $values.storage.pdb.maxUnavailable) $quorum $replicas) -}}
{{- end -}}
{{- if and $values.etcd.enabled (gt (int $values.etcd.pdb.maxUnavailable) 1) -}}
{{- fail (printf "etcd.pdb.maxUnavailable = %d would let an eviction take etcd's quorum" (int $values.etcd.pdb.maxUnavailable)) -}}
{{- end -}}
{{- if and $values.etcd.enabled $values.metadata.externalEndpoints -}}
{{- fail "metadata.externalEndpoints are given and etcd.enabled is true: set one of them" -}}
{{- end -}}
{{- if not (or $values.etcd.enabled $values.metadata.externalEndpoints) -}}
{{- fail "etcd.enabled is false, so metadata.externalEndpoints must name an etcd" -}}
{{- end -}}
{{- include "forebay.validateObjectStore" . -}}
{{- include "forebay.validateConfig" . -}}
{{- $proxy := add (include "forebay.bytes" $values.proxy.memoryBytes) (include "forebay.bytes" $values.proxy.cacheBytes) -}}
{{- include "forebay.validateMemory" (list . "proxy" $proxy "proxy.memoryBytes, proxy.cacheBytes") -}}
{{- $broker := add (include "forebay.bytes" $values.broker.memoryBytes) (include "forebay.bytes" $values.broker.tailCacheBytes) (include "forebay.bytes" $values.broker.cacheBytes) -}}
{{- include "forebay.validateMemory" (list . "broker" $broker "broker.memoryBytes, broker.tailCacheBytes, broker.cacheBytes") -}}
{{- if lt (int $values.proxy.terminationGracePeriodSeconds) (add 20 (int $values.proxy.preStopSeconds) | int) -}}
{{- fail (printf "proxy.terminationGracePeriodSeconds = %d leaves less than 20 seconds after proxy.preStopSeconds = %d" (int $values.proxy.terminationGracePeriodSeconds) (int $values.proxy.preStopSeconds)) -}}
{{- end -}}
{{- include "forebay.validateChange" . -}}
{{- end -}}

{{- define "forebay.validateObjectStore" -}}
{{- $store := .Values.objectStore -}}
{{- $s3 := hasPrefix "s3://" $store.url -}}
{{- if and (hasPrefix "file://" $store.url) (not $store.existingClaim) -}}
{{- fail (printf "objectStore.url = %s needs objectStore.existingClaim, a claim that all pods can write" $store.url) -}}
{{- end -}}
{{- if and $store.existingClaim (not (hasPrefix "file://" $store.url)) -}}
{{- fail "objectStore.existingClaim is only for an objectStore.url that begins with file://" -}}
{{- end -}}
{{- range $key, $value := dict "endpoint" $store.endpoint "region" $store.region "credentials.existingSecret" $store.credentials.existingSecret "allowHttp" $store.allowHttp "pathStyle" (kindIs "bool" $store.pathStyle) -}}
{{- if and $value (not $s3) -}}
{{- fail (printf "objectStore.%s is given, and objectStore.url does not begin with s3://" $key) -}}
{{- end -}}
{{- end -}}
{{- if and (hasPrefix "http://" $store.endpoint) (not $store.allowHttp) -}}
{{- fail (printf "objectStore.endpoint = %s is not encrypted: say objectStore.allowHttp=true if that is meant" $store.endpoint) -}}
{{- end -}}
{{- end -}}

{{/* Keys of `config` and variables of `extraEnv` must not fight with other values. */}}
{{- define "forebay.validateConfig" -}}
{{- $owned := dict
  "cluster" (dict "name" "cluster.name" "replicas" "cluster.replicas" "ack_quorum" "cluster.ackQuorum")
  "metadata" (dict "etcd" "metadata.externalEndpoints" "start_timeout" "metadata.startTimeout")
  "listen" (dict "grpc" "listenHost" "admin" "listenHost" "zone" "zone.value" "advertised_host" "no value, it is the pod's address")
  "broker" (dict "id" "no value, ids are handed out" "data_listen" "listenHost" "tail_cache_bytes" "broker.tailCacheBytes")
  "storage" (dict "id" "no value, it is the pod's number" "data_listen" "listenHost" "data_dir" "no value, it is the volume")
  "proxy" (dict "memory_bytes" "proxy.memoryBytes and broker.memoryBytes" "id" "no value, it is the pod's address")
  "cache" (dict "memory_bytes" "proxy.cacheBytes and broker.cacheBytes" "disk_bytes" "proxy.diskCacheBytes and broker.diskCacheBytes" "dir" "proxy.diskCacheBytes and broker.diskCacheBytes")
  "object_store" (dict "url" "objectStore.url" "endpoint" "objectStore.endpoint" "region" "objectStore.region" "allow_http" "objectStore.allowHttp" "path_style" "objectStore.pathStyle" "access_key_id" "objectStore.credentials" "secret_access_key" "objectStore.credentials")
-}}
{{- $variables := dict "POD_NAME" true "HOME" true -}}
{{- range $section, $keys := $owned -}}
{{- range $key, $value := $keys -}}
{{- $_ := set $variables (printf "FOREBAY_%s__%s" (upper $section) (upper $key)) true -}}
{{- if hasKey (default (dict) (get $.Values.config $section)) $key -}}
{{- fail (printf "config.%s.%s belongs to the chart: use %s" $section $key $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $component := list "proxy" "broker" "storage" "controller" -}}
{{- range (get $.Values $component).extraEnv -}}
{{- if hasKey $variables .name -}}
{{- fail (printf "%s.extraEnv has %s, which belongs to the chart" $component .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Changes of a running release that lose data. Nothing is found when nothing is asked, as by
     `helm template`. */}}
{{- define "forebay.validateChange" -}}
{{- $name := include "forebay.fullname" . -}}
{{- $storage := lookup "apps/v1" "StatefulSet" .Release.Namespace (printf "%s-storage" $name) -}}
{{- if $storage -}}
{{- $was := int (dig "spec" "replicas" 0 $storage) -}}
{{- if and (lt (int .Values.storage.replicas) $was) (not .Values.storage.allowScaleDown) -}}
{{- fail (printf "storage.replicas = %d takes away storage nodes that hold data, there are %d: set storage.allowScaleDown=true if that is meant" (int .Values.storage.replicas) $was) -}}
{{- end -}}
{{- end -}}
{{- $etcd := lookup "apps/v1" "StatefulSet" .Release.Namespace (printf "%s-etcd" $name) -}}
{{- if $etcd -}}
{{- $was := int (dig "spec" "replicas" 0 $etcd) -}}
{{- if not .Values.etcd.enabled -}}
{{- fail "etcd.enabled = false would remove the etcd that holds this release's metadata" -}}
{{- end -}}
{{- if ne (int .Values.etcd.replicas) $was -}}
{{- fail (printf "etcd.replicas = %d: a running etcd of %d members cannot be resized by this chart" (int .Values.etcd.replicas) $was) -}}
{{- end -}}
{{- end -}}
{{- end -}}

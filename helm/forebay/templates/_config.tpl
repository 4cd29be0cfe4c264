{{/* The text of forebay.toml. */}}

{{/* One value in TOML; JSON's strings are TOML's. */}}
{{- define "forebay.tomlValue" -}}
{{- if kindIs "string" . -}}
{{ toJson . }}
{{- else if kindIs "bool" . -}}
{{ . }}
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . }}{{ $items = append $items (include "forebay.tomlValue" .) }}{{ end -}}
[{{ join ", " $items }}]
{{- else if eq (float64 (int64 .)) (float64 .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/* etcd's endpoints, as a JSON list. */}}
{{- define "forebay.endpoints" -}}
{{- if .Values.etcd.enabled -}}
{{- $endpoints := list -}}
{{- range until (int .Values.etcd.replicas) -}}
{{- $host := printf "%s-etcd-%d.%s" (include "forebay.fullname" $) . (include "forebay.domain" (list $ "etcd")) -}}
{{- $endpoints = append $endpoints (printf "http://%s:2379" $host) -}}
{{- end -}}
{{ toJson $endpoints }}
{{- else -}}
{{ toJson .Values.metadata.externalEndpoints }}
{{- end -}}
{{- end -}}

{{/* host:port to listen on. */}}
{{- define "forebay.listen" -}}
{{- $host := (index . 0).Values.listenHost -}}
{{- if contains ":" $host }}[{{ $host }}]{{ else }}{{ $host }}{{ end }}:{{ index . 1 -}}
{{- end -}}

{{/* (list root component): what the chart says, by section and key, as JSON. */}}
{{- define "forebay.ownConfig" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := $root.Values -}}
{{- $config := dict
  "cluster" (dict "name" $values.cluster.name "replicas" $values.cluster.replicas "ack_quorum" $values.cluster.ackQuorum)
  "metadata" (dict "etcd" (include "forebay.endpoints" $root | fromJsonArray) "start_timeout" $values.metadata.startTimeout)
  "listen" (dict "grpc" (include "forebay.listen" (list $root 7450)) "admin" (include "forebay.listen" (list $root 7451)))
-}}
{{- if $values.zone.value -}}
{{- $_ := set $config.listen "zone" $values.zone.value -}}
{{- end -}}
{{- if eq $component "proxy" -}}
{{- $_ := set $config "proxy" (dict "memory_bytes" $values.proxy.memoryBytes) -}}
{{- else if eq $component "broker" -}}
{{- $_ := set $config "proxy" (dict "memory_bytes" $values.broker.memoryBytes) -}}
{{- $_ := set $config "broker" (dict
  "id" 0
  "data_listen" (printf "tcp://%s" (include "forebay.listen" (list $root 7460)))
  "tail_cache_bytes" $values.broker.tailCacheBytes) -}}
{{- else if eq $component "storage" -}}
{{- $_ := set $config "storage" (dict
  "data_dir" "/var/lib/forebay/data"
  "data_listen" (printf "tcp://%s" (include "forebay.listen" (list $root 7470)))) -}}
{{- end -}}
{{- if has $component (list "proxy" "broker") -}}
{{- $role := get $values $component -}}
{{- $cache := dict "memory_bytes" $role.cacheBytes -}}
{{- if $role.diskCacheBytes -}}
{{- $cache = merge $cache (dict "disk_bytes" $role.diskCacheBytes "dir" "/var/cache/forebay") -}}
{{- end -}}
{{- $_ := set $config "cache" $cache -}}
{{- end -}}
{{- $store := $values.objectStore -}}
{{- if $store.url -}}
{{- $section := dict "url" $store.url -}}
{{- if hasPrefix "s3://" $store.url -}}
{{- $_ := set $section "allow_http" $store.allowHttp -}}
{{- if kindIs "bool" $store.pathStyle }}{{ $_ := set $section "path_style" $store.pathStyle }}{{ end -}}
{{- if $store.endpoint }}{{ $_ := set $section "endpoint" $store.endpoint }}{{ end -}}
{{- if $store.region }}{{ $_ := set $section "region" $store.region }}{{ end -}}
{{- end -}}
{{- $_ := set $config "object_store" $section -}}
{{- end -}}
{{ toJson $config }}
{{- end -}}

{{/* (list root component): forebay.toml. Sections of one role reach the pods of that role only, so
     that a change of one does not restart the others. */}}
{{- define "forebay.config" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $config := include "forebay.ownConfig" . | fromJson -}}
{{- $roles := dict "proxy" (list "proxy" "broker") "cache" (list "proxy" "broker") "broker" (list "broker") "storage" (list "storage") "controller" (list "controller") -}}
{{- range $section, $keys := $root.Values.config -}}
{{- if has $component (default (list $component) (get $roles $section)) -}}
{{- $_ := set $config $section (merge (dict) (default (dict) (get $config $section)) $keys) -}}
{{- end -}}
{{- end -}}
{{- range $section, $keys := $config }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ include "forebay.tomlValue" $value }}
{{- end }}
{{ end -}}
{{- end -}}

{{/* The pods of Forebay's own roles: one shape, the differences by component. */}}

{{/* What the chart's user says about where pods run; (list root component). */}}
{{- define "forebay.scheduling" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := get $root.Values $component -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $spread := list -}}
{{- range $key, $when := dict "topology.kubernetes.io/zone" $values.topologySpread.zone "kubernetes.io/hostname" $values.topologySpread.host }}
{{- if $when }}{{ $spread = append $spread (list $key $when) }}{{ end }}
{{- end }}
{{- with $spread }}
topologySpreadConstraints:
  {{- range . }}
  - maxSkew: 1
    topologyKey: {{ index . 0 }}
    whenUnsatisfiable: {{ index . 1 }}
    labelSelector:
      matchLabels: {{- include "forebay.selector" (list $root $component) | nindent 8 }}
    {{- if not (has $component (list "storage" "etcd")) }}
    # A rollout's new pods are spread among themselves.
    matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* What every pod of the release has in its spec. */}}
{{- define "forebay.podCommon" -}}
serviceAccountName: {{ include "forebay.serviceAccountName" . }}
# Nothing in the pods talks to Kubernetes.
automountServiceAccountToken: false
# Otherwise a Service whose name begins with the release's puts FOREBAY_... variables into the
# pods, which would be taken for configuration.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end -}}

{{/* (list root component): the environment of Forebay's pods. */}}
{{- define "forebay.env" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := $root.Values -}}
{{- if eq $component "storage" }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: FOREBAY_STORAGE__ID
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
# A name that stays when the pod's address changes.
- name: FOREBAY_LISTEN__ADVERTISED_HOST
  value: $(POD_NAME).{{ include "forebay.domain" (list $root "storage") }}
{{- else }}
- name: FOREBAY_LISTEN__ADVERTISED_HOST
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}
{{- if and $values.zone.podLabel (not $values.zone.value) }}
- name: FOREBAY_LISTEN__ZONE
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['{{ $values.zone.podLabel }}']"}}
{{- end }}
{{- with $values.objectStore.credentials }}
{{- if .existingSecret }}
- name: FOREBAY_OBJECT_STORE__ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .accessKeyIdKey }}}}
- name: FOREBAY_OBJECT_STORE__SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .secretAccessKeyKey }}}}
{{- end }}
{{- end }}
{{- with (get $values $component).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* (list root component): a pod template. */}}
{{- define "forebay.pod" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := get $root.Values $component -}}
{{- $shared := $root.Values.objectStore.existingClaim -}}
metadata:
  labels:
    {{- include "forebay.selector" . | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "forebay.config" . | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "forebay.podCommon" $root | nindent 2 }}
  {{- with include "forebay.scheduling" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  containers:
    - name: forebay
      image: {{ include "forebay.image" (list $root $root.Values.image) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: [serve, --roles, {{ $component }}, --config, /etc/forebay/forebay.toml]
      env: {{- include "forebay.env" . | indent 8 }}
      ports:
        {{- if ne $component "controller" }}
        - {name: grpc, containerPort: 7450}
        {{- end }}
        - {name: admin, containerPort: 7451}
        {{- if eq $component "broker" }}
        - {name: data, containerPort: 7460}
        {{- else if eq $component "storage" }}
        - {name: data, containerPort: 7470}
        {{- end }}
      # The admin port answers from the first second: a long recovery is not a failed start.
      startupProbe:
        httpGet: {path: /livez, port: admin}
        periodSeconds: 2
        failureThreshold: 30
      livenessProbe:
        httpGet: {path: /livez, port: admin}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      {{- if and (eq $component "proxy") (gt (int $values.preStopSeconds) 0) }}
      lifecycle:
        preStop:
          {{- if semverCompare ">=1.30.0-0" $root.Capabilities.KubeVersion.Version }}
          sleep: {seconds: {{ $values.preStopSeconds }}}
          {{- else }}
          exec: {command: [/bin/sleep, {{ $values.preStopSeconds | quote }}]}
          {{- end }}
      {{- end }}
      resources: {{- toYaml $values.resources | nindent 8 }}
      securityContext: {{- toYaml $root.Values.securityContext | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/forebay, readOnly: true}
        {{- if eq $component "storage" }}
        - {name: data, mountPath: /var/lib/forebay}
        {{- end }}
        {{- if $values.diskCacheBytes }}
        - {name: cache, mountPath: /var/cache/forebay}
        {{- end }}
        {{- if $shared }}
        - {name: objects, mountPath: {{ $root.Values.objectStore.url | trimPrefix "file://" | quote }}}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "forebay.fullname" $root }}-{{ $component }}}
    {{- with $values.diskCacheBytes }}
    # A quarter more than the cache takes: a pod beyond its limit is evicted.
    - name: cache
      emptyDir: {sizeLimit: {{ div (mul 5 (include "forebay.bytes" .)) 4 | quote }}}
    {{- end }}
    {{- if $shared }}
    - name: objects
      persistentVolumeClaim: {claimName: {{ $shared }}}
    {{- end }}
{{- end -}}

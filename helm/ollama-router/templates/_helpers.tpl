{{/* Names */}}
{{- define "ollama-router.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 45: a StatefulSet's name may have 52, since a label of its pods is that name and 11 more; ours adds -ollama. */}}
{{- define "ollama-router.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- $name := include "ollama-router.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the router itself speaks to clients. */}}
{{- define "ollama-router.scheme" -}}
{{- if (.Values.config.tls | default dict).cert_file }}https{{ else }}http{{ end }}
{{- end }}

{{- define "ollama-router.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{- define "ollama-router.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "ollama-router.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Labels: (dict "at" . "component" "router"). A selector never holds a version. */}}
{{- define "ollama-router.selectorLabels" -}}
app.kubernetes.io/name: {{ if eq .component "ollama" }}ollama{{ else }}{{ include "ollama-router.name" .at }}{{ end }}
app.kubernetes.io/instance: {{ .at.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* With what else is said of this object; none of it takes the place of a label by which others choose. */}}
{{- define "ollama-router.labels" -}}
{{- $chosen := include "ollama-router.selectorLabels" . | fromYaml }}
{{- $chart := printf "%s-%s" .at.Chart.Name .at.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- $standard := dict "app.kubernetes.io/version" .at.Chart.AppVersion "app.kubernetes.io/part-of" "ollama-router" "app.kubernetes.io/managed-by" .at.Release.Service "helm.sh/chart" $chart }}
{{- toYaml (merge $chosen (deepCopy (.labels | default dict)) (deepCopy .at.Values.commonLabels) $standard) }}
{{- end }}

{{/* Metadata: (dict "at" . "component" "router" "suffix" "-x" "labels" {} "annotations" {} "namespace" "") */}}
{{- define "ollama-router.metadata" -}}
name: {{ include "ollama-router.fullname" .at }}{{ .suffix | default "" }}
namespace: {{ .namespace | default (include "ollama-router.namespace" .at) }}
labels:
  {{- include "ollama-router.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .at.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Image: (dict "at" . "image" .Values.image "tag" .Chart.AppVersion) */}}
{{- define "ollama-router.image" -}}
{{- $registry := .at.Values.global.imageRegistry | default .image.registry -}}
{{- $name := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") -}}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ .image.tag | default .tag }}
{{- end }}
{{- end }}

{{- define "ollama-router.pullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.imagePullSecrets | uniq }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Replicas that there may be at once; 1 means that nothing is shared. */}}
{{- define "ollama-router.replicasMax" -}}
{{- if .Values.autoscaling.enabled }}{{ .Values.autoscaling.maxReplicas }}
{{- else if .Values.keda.enabled }}{{ .Values.keda.maxReplicaCount }}
{{- else }}{{ .Values.replicaCount }}{{ end }}
{{- end }}

{{/* Replicas that there are at least, whatever scales them. */}}
{{- define "ollama-router.replicasMin" -}}
{{- if .Values.autoscaling.enabled }}{{ .Values.autoscaling.minReplicas }}
{{- else if .Values.keda.enabled }}{{ .Values.keda.minReplicaCount }}
{{- else }}{{ .Values.replicaCount }}{{ end }}
{{- end }}

{{- define "ollama-router.hasExternalRedis" -}}
{{- with .Values.externalRedis }}{{ if or .url .host .existingSecretUrlKey .sentinel.enabled .cluster.enabled }}true{{ end }}{{ end }}
{{- end }}

{{- define "ollama-router.hasStore" -}}
{{- if or .Values.redis.enabled (include "ollama-router.hasExternalRedis" .) }}true{{ end }}
{{- end }}

{{- define "ollama-router.redisUrl" -}}
{{- if .Values.redis.enabled -}}
redis://{{ include "ollama-router.fullname" . }}-redis:6379/0
{{- else if .Values.externalRedis.url -}}
{{ .Values.externalRedis.url }}
{{- else -}}
{{- $redis := .Values.externalRedis -}}
{{- $scheme := ternary "rediss" "redis" $redis.tls.enabled -}}
{{- $user := ternary (printf "%s@" (include "ollama-router.inUrl" $redis.username)) "" (ne $redis.username "") -}}
{{- if $redis.sentinel.enabled -}}
{{ $scheme }}+sentinel://{{ $user }}{{ join "," $redis.sentinel.nodes }}/{{ include "ollama-router.inUrl" $redis.sentinel.masterSet }}/{{ $redis.database }}
{{- else if $redis.cluster.enabled -}}
{{ $scheme }}+cluster://{{ $user }}{{ join "," $redis.cluster.nodes }}
{{- else -}}
{{ $scheme }}://{{ $user }}{{ ternary (printf "[%s]" $redis.host) $redis.host (regexMatch "^[^\\[].*:.*:" $redis.host) }}:{{ $redis.port }}/{{ $redis.database }}
{{- end }}
{{- end }}
{{- end }}

{{- define "ollama-router.inUrl" -}}
{{- urlquery . | replace "+" "%20" }}
{{- end }}

{{/* Ports of a store outside, with commas: those in its URL, and of servers that sentinels or a cluster may name. */}}
{{- define "ollama-router.redisPorts" -}}
{{- $port := toString .Values.externalRedis.port }}
{{- $ports := list }}
{{- if .Values.externalRedis.existingSecretUrlKey }}
{{- $ports = list $port }}
{{- else }}
{{- $url := include "ollama-router.redisUrl" . }}
{{- $usual := ternary "26379" "6379" (contains "+sentinel://" $url) }}
{{- range $url | regexFind "://[^/]+" | trimPrefix "://" | regexFind "[^@]+$" | splitList "," }}
{{- $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | default $usual) }}
{{- end }}
{{- if regexMatch "^[a-z]+\\+" $url }}{{ $ports = append $ports $port }}{{ end }}
{{- end }}
{{- $ports | uniq | join "," }}
{{- end }}

{{/* Secret and key of the store's password; empty where it has none. */}}
{{- define "ollama-router.redisSecret" -}}
{{- if .Values.redis.enabled }}
{{- if .Values.redis.auth.enabled }}{{ .Values.redis.auth.existingSecret | default (printf "%s-redis" (include "ollama-router.fullname" .)) }}{{ end }}
{{- else if .Values.externalRedis.existingSecretPasswordKey }}{{ .Values.externalRedis.existingSecret }}{{ end }}
{{- end }}

{{- define "ollama-router.redisSecretKey" -}}
{{- ternary .Values.redis.auth.existingSecretPasswordKey .Values.externalRedis.existingSecretPasswordKey .Values.redis.enabled }}
{{- end }}

{{/* Secret of the sentinels' password; empty where they have none. */}}
{{- define "ollama-router.sentinelSecret" -}}
{{- with .Values.externalRedis }}{{ if .sentinel.existingSecretPasswordKey }}{{ .sentinel.existingSecret | default .existingSecret }}{{ end }}{{ end }}
{{- end }}

{{/* What of externalRedis.tls.existingSecret is used, as a list of keys and files. */}}
{{- define "ollama-router.redisTls" -}}
{{- with .Values.externalRedis.tls }}
{{- range $file, $key := dict "redis-ca.crt" .caKey "redis-tls.crt" .certKey "redis-tls.key" .keyKey }}
{{- if $key }}
- key: {{ $key }}
  path: {{ $file }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "ollama-router.keysSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-keys" (include "ollama-router.fullname" .)) }}
{{- end }}

{{/* Whether labels are chosen by a selector: (dict "labels" {} "selector" ""); "unsure" of terms that are no equality. */}}
{{- define "ollama-router.isChosen" -}}
{{- $labels := .labels }}{{ $answer := "true" }}
{{- if regexMatch "[!()]|^[^=]*$" .selector }}{{ $answer = "unsure" }}
{{- else }}
{{- range $term := splitList "," .selector }}
{{- $pair := regexSplit "={1,2}" (trim $term) 2 }}
{{- if ne (get $labels (first $pair | trim) | default "") (last $pair | trim) }}{{ $answer = "false" }}{{ end }}
{{- end }}
{{- end }}
{{- $answer }}
{{- end }}

{{/* Ports of nodes, with commas, as the router reads their addresses. */}}
{{- define "ollama-router.nodePorts" -}}
{{- $ports := list (toString (int .Values.discovery.kubernetes.port)) }}
{{- range $node := .Values.nodes }}
{{- $url := $node }}
{{- if kindIs "map" $node }}{{ $url = $node.url | default "" }}{{ end }}
{{- $usual := ternary "443" (ternary "80" "11434" (hasPrefix "http://" $url)) (hasPrefix "https://" $url) }}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trimSuffix "/" $url) | trimPrefix ":" | default $usual) }}
{{- end }}
{{- if .Values.discovery.dns.enabled }}
{{- range .Values.discovery.dns.hosts }}{{ $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | default "11434") }}{{ end }}
{{- end }}
{{- $ports | uniq | join "," }}
{{- end }}

{{/* A pod needs both parts of leaving and 15 s. */}}
{{- define "ollama-router.leavingSeconds" -}}
{{- add (int .Values.shutdown.drainDelaySeconds) (int .Values.shutdown.streamDrainSeconds) 15 }}
{{- end }}

{{- define "ollama-router.gracePeriod" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}{{ include "ollama-router.leavingSeconds" . }}
{{- else }}{{ .Values.terminationGracePeriodSeconds }}{{ end }}
{{- end }}

{{/* The router's settings of the store, as YAML; what a Secret says of its URL comes by the environment. */}}
{{- define "ollama-router.store" -}}
{{- $store := dict }}
{{- if include "ollama-router.hasStore" . }}
{{- if not .Values.externalRedis.existingSecretUrlKey }}{{ $_ := set $store "url" (include "ollama-router.redisUrl" .) }}{{ end }}
{{- if include "ollama-router.redisSecret" . }}{{ $_ := set $store "password_file" "/etc/ollama-router/redis-password" }}{{ end }}
{{- with .Values.externalRedis.sentinel.username }}{{ $_ := set $store "sentinel_user" . }}{{ end }}
{{- if include "ollama-router.sentinelSecret" . }}{{ $_ := set $store "sentinel_password_file" "/etc/ollama-router/sentinel-password" }}{{ end }}
{{- with .Values.externalRedis.tls }}
{{- if .existingSecret }}
{{- range $name, $file := dict "ca_file" (list .caKey "redis-ca.crt") "cert_file" (list .certKey "redis-tls.crt") "key_file" (list .keyKey "redis-tls.key") }}
{{- if first $file }}{{ $_ := set $store $name (printf "/etc/ollama-router/%s" (last $file)) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $store }}
{{- end }}

{{/* The router's configuration, as YAML. */}}
{{- define "ollama-router.config" -}}
{{- $config := omit (deepCopy .Values.config) "existingConfigMap" "existingConfigMapKey" }}
{{- $_ := set $config "listen" "*:11435" }}
{{- $_ := set $config "metrics_listen" (printf "*:%d" (int .Values.metrics.port)) }}
{{- with .Values.nodes }}{{ $_ := set $config "nodes" . }}{{ end }}
{{- with .Values.aliases }}{{ $_ := set $config "aliases" . }}{{ end }}
{{- $kubernetes := .Values.discovery.kubernetes }}
{{- $discovery := dict }}
{{- if $kubernetes.enabled }}
{{- $_ := set $discovery "kubernetes" (dict "enabled" true "namespaces" $kubernetes.namespaces "label_selector" $kubernetes.labelSelector "service_names" $kubernetes.serviceNames "port_name" $kubernetes.portName "port" (int $kubernetes.port)) }}
{{- end }}
{{- if .Values.discovery.dns.enabled }}
{{- $_ := set $discovery "dns" (dict "enabled" true "hosts" .Values.discovery.dns.hosts) }}
{{- end }}
{{- if $discovery }}{{ $_ := set $config "discovery" $discovery }}{{ end }}
{{- if .Values.auth.enabled }}
{{- $_ := set $config "auth" (dict "required" true "keys_file" "/etc/ollama-router/keys.yaml") }}
{{- end }}
{{- with include "ollama-router.store" . | fromYaml }}{{ $_ := set $config "store" . }}{{ end }}
{{- /* The least: with more than there are, slots would be left unused for as long as the store is away. */}}
{{- $least := int (include "ollama-router.replicasMin" .) }}
{{- if and (include "ollama-router.hasStore" .) (gt $least 1) }}{{ $_ := set $config "store" (merge (dict "replicas" $least) ($config.store | default dict)) }}{{ end }}
{{- if .Values.tracing.enabled }}
{{- $_ := set $config "tracing" (dict "endpoint" .Values.tracing.endpoint "protocol" .Values.tracing.protocol "sample_ratio" .Values.tracing.samplerRatio "service_name" .Values.tracing.serviceName) }}
{{- if .Values.tracing.headersExistingSecret }}{{ $_ := set $config.tracing "headers_file" "/etc/ollama-router/tracing-headers" }}{{ end }}
{{- end }}
{{- $_ := set $config "shutdown" (dict "drain_delay_s" .Values.shutdown.drainDelaySeconds "stream_drain_s" .Values.shutdown.streamDrainSeconds) }}
{{- toYaml $config }}
{{- end }}

{{/* Whose spans these are, as OpenTelemetry's SDK reads it: the pod, and what the operator adds. */}}
{{- define "ollama-router.resourceAttributes" -}}
{{- $told := list "k8s.pod.name=$(POD_NAME)" "k8s.namespace.name=$(POD_NAMESPACE)" "service.instance.id=$(POD_NAMESPACE).$(POD_NAME)" }}
{{- range $name, $value := .Values.tracing.resourceAttributes }}{{ $told = append $told (printf "%s=%s" $name (urlquery $value | replace "+" "%20")) }}{{ end }}
{{- join "," $told }}
{{- end }}

{{/* Of the configuration, what a running router does not take over: a change of it has to roll the pods. Not so their number. */}}
{{- define "ollama-router.needsRestart" -}}
{{- $config := include "ollama-router.config" . | fromYaml }}
{{- with $config.store }}{{ $_ := set $config "store" (omit . "replicas") }}{{ end }}
{{- pick $config "pool" "tls" "admin" "client" "log" "limits" "metrics" "metrics_listen" "store" "tracing" "workers" | toJson | sha256sum }}
{{- end }}

{{/* Operators' objects: (dict "at" . "monitor" .Values.metrics.serviceMonitor "kind" "ServiceMonitor") */}}
{{- define "ollama-router.rendersCrd" -}}
{{- if .monitor.enabled }}
{{- $has := .at.Capabilities.APIVersions.Has "monitoring.coreos.com/v1" }}
{{- if and (not $has) (eq .monitor.renderMode "failIfMissing") }}
{{- fail (printf "this cluster knows no %s: install the Prometheus Operator first, or set renderMode to skipIfMissing" .kind) }}
{{- end }}
{{- if or $has (eq .monitor.renderMode "alwaysRender") }}true{{ end }}
{{- end }}
{{- end }}

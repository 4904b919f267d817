{{/* Values that contradict one another: one line each, all at once. */}}
{{- define "ollama-router.problems" -}}
{{- range $key, $said := dict "nodes" "nodes" "aliases" "aliases" "discovery" "discovery" "store" "redis or externalRedis" "auth" "auth" "shutdown" "shutdown" "tracing" "tracing" "listen" "service" "metrics_listen" "metrics.port" }}
{{- if hasKey $.Values.config $key }}
- config.{{ $key }}: the chart says this itself; set {{ $said }} at the top instead
{{- end }}
{{- end }}
{{- if and .Values.config.existingConfigMap (gt (len (omit .Values.config "existingConfigMap" "existingConfigMapKey")) 0) }}
- config: existingConfigMap holds a whole configuration, and other settings stand beside it; remove one of them
{{- end }}
{{- if and (gt (int (include "ollama-router.replicasMax" .)) 1) (not (include "ollama-router.hasStore" .)) (not .Values.config.existingConfigMap) }}
- {{ include "ollama-router.replicasMax" . }} replicas and nothing that they share: each would give away every slot of every node. Set redis.enabled=true or externalRedis.host, or replicaCount=1
{{- end }}
{{- if and .Values.redis.enabled (include "ollama-router.hasExternalRedis" .) }}
- redis.enabled and externalRedis are both set: set redis.enabled=false for a Redis of your own
{{- end }}
{{- include "ollama-router.problemsOfExternalRedis" . }}
{{- if and .Values.auth.enabled (not .Values.auth.existingSecret) (not .Values.auth.apiKeys) }}
- auth.enabled and nobody has a key: give auth.existingSecret (docs/teams.md says what stands in it)
{{- end }}
{{- if and .Values.auth.existingSecret .Values.auth.apiKeys }}
- auth.existingSecret and auth.apiKeys are both set: remove the plain keys
{{- end }}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
- autoscaling.enabled and keda.enabled would both scale the Deployment: choose one
{{- end }}
{{- if and .Values.keda.enabled (not .Values.keda.triggers) }}
- keda.enabled and keda.triggers is empty: by what shall it scale?
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}
- metrics.serviceMonitor and metrics.podMonitor would both scrape every pod: choose one
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) }}
- metrics.serviceMonitor needs the Service of metrics.enabled
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
- httpRoute.enabled and httpRoute.parentRefs is empty: which Gateway is it for?
{{- end }}
{{- if and .Values.tracing.enabled (not .Values.tracing.endpoint) }}
- tracing.enabled and tracing.endpoint is empty
{{- end }}
{{- if and .Values.discovery.dns.enabled (not .Values.discovery.dns.hosts) }}
- discovery.dns.enabled and discovery.dns.hosts is empty: name headless Services
{{- end }}
{{- if and (not .Values.discovery.kubernetes.enabled) (not .Values.discovery.dns.enabled) (not .Values.nodes) (not .Values.config.existingConfigMap) }}
- there is nothing to route to: set nodes, discovery.kubernetes.enabled or discovery.dns.enabled
{{- end }}
{{- with .Values.discovery.kubernetes }}
{{- if and (has "*" .namespaces) (gt (len .namespaces) 1) }}
- discovery.kubernetes.namespaces names "*" and others: "*" is all of them already
{{- end }}
{{- end }}
{{- include "ollama-router.problemsOfDiscovery" . }}
{{- include "ollama-router.problemsOfService" . }}
{{- range $index, $node := .Values.nodes }}
{{- if not (or (and (kindIs "string" $node) $node) (and (kindIs "map" $node) (get (ternary $node dict (kindIs "map" $node)) "url"))) }}
- nodes[{{ $index }}] has no url: write http://HOST:11434, or {url: http://HOST:11434, slots: 4}
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
- ingress.enabled and ingress.hosts is empty: under which name?
{{- end }}
{{- with .Values.autoscaling }}
{{- if and .enabled (not .targetCPUUtilizationPercentage) (not .targetMemoryUtilizationPercentage) (not .metrics) }}
- autoscaling.enabled and it has no target and no metrics: by what shall it scale?
{{- end }}
{{- end }}
{{- if has (int .Values.metrics.port) (list 11435 9465) }}
- metrics.port {{ .Values.metrics.port }} is taken, by clients (11435) or the admin API (9465): take another one
{{- end }}
{{- if lt (int (include "ollama-router.gracePeriod" .)) (int (include "ollama-router.leavingSeconds" .)) }}
- terminationGracePeriodSeconds {{ .Values.terminationGracePeriodSeconds }} is less than shutdown.drainDelaySeconds + shutdown.streamDrainSeconds + 15 = {{ include "ollama-router.leavingSeconds" . }}: streams would be killed. Leave it null, or shorten shutdown.streamDrainSeconds
{{- end }}
{{- range $name, $bounds := dict "autoscaling" (list "minReplicas" "maxReplicas") "keda" (list "minReplicaCount" "maxReplicaCount") }}
{{- $least := get (get $.Values $name) (first $bounds) }}{{ $most := get (get $.Values $name) (last $bounds) }}
{{- if and (get $.Values $name).enabled (gt (int $least) (int $most)) }}
- {{ $name }}.{{ first $bounds }} {{ $least }} is more than {{ $name }}.{{ last $bounds }} {{ $most }}
{{- end }}
{{- end }}
{{- if and .Values.tests.existingSecret (not .Values.auth.enabled) }}
- tests.existingSecret holds a key, and auth.enabled is false: nobody asks for it
{{- end }}
{{- with .Values.podDisruptionBudget }}
{{- if and .enabled (kindIs "invalid" .minAvailable) (kindIs "invalid" .maxUnavailable) }}
- podDisruptionBudget has neither minAvailable nor maxUnavailable: set one, or podDisruptionBudget.enabled=false
{{- end }}
{{- if and (not (kindIs "invalid" .minAvailable)) (not (kindIs "invalid" .maxUnavailable)) }}
- podDisruptionBudget has minAvailable and maxUnavailable: Kubernetes takes one of them; set the other to null
{{- end }}
{{- end }}
{{- end }}

{{- define "ollama-router.problemsOfDiscovery" -}}
{{- $kubernetes := .Values.discovery.kubernetes }}
{{- $name := include "ollama-router.fullname" . }}
{{- $labels := include "ollama-router.labels" (dict "at" . "component" "router" "labels" .Values.service.labels) | fromYaml }}
{{- $looksHere := or (not $kubernetes.namespaces) (has "*" $kubernetes.namespaces) (has (include "ollama-router.namespace" .) $kubernetes.namespaces) }}
{{- if and $kubernetes.enabled $looksHere }}
{{- if has $name $kubernetes.serviceNames }}
- discovery.kubernetes.serviceNames names {{ $name }}, which is this router: it would call itself
{{- else if and (not $kubernetes.serviceNames) (eq "true" (include "ollama-router.isChosen" (dict "labels" $labels "selector" $kubernetes.labelSelector))) }}
- discovery.kubernetes.labelSelector {{ $kubernetes.labelSelector }} chooses this router's own Service: it would call itself. Choose by another label, or leave nameOverride and commonLabels
{{- end }}
{{- end }}
{{- if .Values.ollama.enabled }}
{{- $servers := printf "%s-ollama" $name }}
{{- $labels = include "ollama-router.labels" (dict "at" . "component" "ollama") | fromYaml }}
{{- $isNamed := or (has $servers $kubernetes.serviceNames) (and (not $kubernetes.serviceNames) (ne "false" (include "ollama-router.isChosen" (dict "labels" $labels "selector" $kubernetes.labelSelector)))) }}
{{- $isLooked := and .Values.discovery.dns.enabled (contains $servers (join "," .Values.discovery.dns.hosts)) }}
{{- if not (or $isLooked (and $kubernetes.enabled $looksHere $isNamed)) }}
- ollama.enabled runs servers that this router does not look for: let discovery.kubernetes cover the Service {{ $servers }} of {{ include "ollama-router.namespace" . }}, or set discovery.dns={enabled: true, hosts: [{{ $servers }}]}
{{- end }}
{{- end }}
{{- end }}

{{- define "ollama-router.problemsOfService" -}}
{{- with .Values.service }}
{{- range $field := list "nodePort" "externalTrafficPolicy" }}
{{- if and (get $.Values.service $field) (eq $.Values.service.type "ClusterIP") }}
- service.{{ $field }} goes with service.type NodePort or LoadBalancer, and it is ClusterIP
{{- end }}
{{- end }}
{{- range $field := list "loadBalancerClass" "loadBalancerSourceRanges" }}
{{- if and (get $.Values.service $field) (ne $.Values.service.type "LoadBalancer") }}
- service.{{ $field }} goes with service.type LoadBalancer, and it is {{ $.Values.service.type }}
{{- end }}
{{- end }}
{{- if and (eq (toString .clusterIP) "None") (ne (int .port) 11435) }}
- service.clusterIP None leads to the pods themselves, which listen on 11435: set service.port=11435
{{- end }}
{{- end }}
{{- end }}

{{- define "ollama-router.problemsOfExternalRedis" -}}
{{- $url := include "ollama-router.redisUrl" . }}
{{- with .Values.externalRedis }}
{{- $ways := list }}
{{- range $way, $said := dict "url" .url "host" .host "existingSecretUrlKey" .existingSecretUrlKey "sentinel" .sentinel.enabled "cluster" .cluster.enabled }}
{{- if $said }}{{ $ways = append $ways $way }}{{ end }}
{{- end }}
{{- if gt (len $ways) 1 }}
- externalRedis says more than once where it is, by {{ $ways | sortAlpha | join ", " }}: keep one of them
{{- end }}
{{- if and .host (not (regexMatch "^([A-Za-z0-9_.-]+|\\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\\]?)$" .host)) }}
- externalRedis.host {{ .host }} is no host: its port goes to externalRedis.port, TLS to externalRedis.tls, a whole URL to externalRedis.url
{{- end }}
{{- if and .url (not (regexMatch "^rediss?(\\+(sentinel|cluster))?://[^/]" .url)) }}
- externalRedis.url begins with redis:// or rediss://, or with redis+sentinel://, redis+cluster:// or these with rediss (docs/store.md)
{{- end }}
{{- if regexMatch "://[^/]*:[^/]*@" .url }}
- externalRedis.url holds a password, which a ConfigMap would show: name its Secret in externalRedis.existingSecret and existingSecretPasswordKey
{{- end }}
{{- if and (or .existingSecretPasswordKey .existingSecretUrlKey) (not .existingSecret) }}
- externalRedis names a key of a Secret and no Secret: set externalRedis.existingSecret
{{- end }}
{{- if and .existingSecret (not .existingSecretPasswordKey) (not .existingSecretUrlKey) (not .sentinel.existingSecretPasswordKey) }}
- externalRedis.existingSecret is set and no key of it: set externalRedis.existingSecretPasswordKey or existingSecretUrlKey
{{- end }}
{{- if and .tls.enabled (or .url .existingSecretUrlKey) }}
- externalRedis.tls.enabled goes with externalRedis.host, sentinel or cluster; in externalRedis.url write rediss://
{{- else if and .tls.enabled (not $ways) }}
- externalRedis.tls.enabled and no Redis that it is for: set externalRedis.host, sentinel or cluster
{{- end }}
{{- if and .tls.existingSecret (not .existingSecretUrlKey) (not (hasPrefix "rediss" $url)) }}
- externalRedis.tls.existingSecret is set and the store speaks no TLS: set externalRedis.tls.enabled, or write rediss:// in externalRedis.url
{{- end }}
{{- if and (or .tls.certKey .tls.keyKey) (not .tls.existingSecret) }}
- externalRedis.tls names a client's certificate and no Secret: set externalRedis.tls.existingSecret
{{- end }}
{{- if and .tls.keyKey (not .tls.certKey) }}
- externalRedis.tls.keyKey is the key of a certificate: set externalRedis.tls.certKey
{{- end }}
{{- if and .tls.existingSecret (not .tls.caKey) (not .tls.certKey) }}
- externalRedis.tls.existingSecret is set and nothing of it is used: set externalRedis.tls.caKey or certKey
{{- end }}
{{- if .sentinel.enabled }}
{{- if not .sentinel.nodes }}
- externalRedis.sentinel.enabled and externalRedis.sentinel.nodes is empty: name all sentinels
{{- end }}
{{- if not .sentinel.masterSet }}
- externalRedis.sentinel.enabled and externalRedis.sentinel.masterSet is empty: what do the sentinels call the primary?
{{- end }}
{{- else }}
{{- if or .sentinel.nodes .sentinel.masterSet }}
- externalRedis.sentinel names sentinels that nobody asks: set externalRedis.sentinel.enabled
{{- end }}
{{- if and (or .sentinel.username .sentinel.existingSecretPasswordKey) (not .existingSecretUrlKey) (not (contains "+sentinel://" $url)) }}
- externalRedis.sentinel has a user or a password, and there are no sentinels: set externalRedis.sentinel.enabled
{{- end }}
{{- end }}
{{- if and .sentinel.existingSecret (not .sentinel.existingSecretPasswordKey) }}
- externalRedis.sentinel.existingSecret is set and no key of it: set externalRedis.sentinel.existingSecretPasswordKey
{{- end }}
{{- if and .sentinel.existingSecretPasswordKey (not .sentinel.existingSecret) (not .existingSecret) }}
- externalRedis.sentinel names a key of a Secret and no Secret: set externalRedis.sentinel.existingSecret
{{- end }}
{{- if and .cluster.enabled (not .cluster.nodes) }}
- externalRedis.cluster.enabled and externalRedis.cluster.nodes is empty: name some of its servers
{{- end }}
{{- if and .cluster.nodes (not .cluster.enabled) }}
- externalRedis.cluster names servers that nobody asks: set externalRedis.cluster.enabled
{{- end }}
{{- if and .cluster.enabled (gt (int .database) 0) }}
- externalRedis.database {{ .database }}: a cluster has no databases; leave 0
{{- end }}
{{- range $node := concat .sentinel.nodes .cluster.nodes }}
{{- if not (regexMatch "^(\\[[0-9A-Fa-f:.%]+\\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?$" $node) }}
- externalRedis: {{ $node }} is neither host nor host:port; user and password are told apart from it
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "ollama-router.validate" -}}
{{- with include "ollama-router.problems" . | trim }}
{{- fail (printf "\nthese values cannot be:\n%s\n" .) }}
{{- end }}
{{- end }}

{{/* Labels of everything; (dict "root" $ "name" "job-svc") */}}
{{- define "kiln.labels" -}}
{{ include "kiln.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: kiln
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "kiln.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* What every object of the release begins with. */}}
{{- define "kiln.prefix" -}}
{{- if eq .Release.Name "kiln" -}}kiln{{- else -}}{{ printf "%s-kiln" .Release.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{- define "kiln.secret" -}}
{{- .Values.secret.existing | default (printf "%s-secrets" (include "kiln.prefix" .)) -}}
{{- end }}

{{- define "kiln.serviceAccount" -}}
{{- .Values.serviceAccount.existing | default (include "kiln.prefix" .) -}}
{{- end }}

{{- define "kiln.scheme" -}}{{- ternary "https" "http" .Values.tls.enabled -}}{{- end }}

{{/* "true" if the main port speaks TLS, else nothing: that of the gateway is public. */}}
{{- define "kiln.isTls" -}}
{{- if eq .name "gateway" }}{{ if .root.Values.tls.publicSecret }}true{{ end }}{{ else if .root.Values.tls.enabled }}true{{ end -}}
{{- end }}

{{/* URL of a service within the cluster; (dict "root" $ "name" "job-svc") */}}
{{- define "kiln.url" -}}
{{- printf "%s://%s-%s:%s" (include "kiln.scheme" .root) (include "kiln.prefix" .root) .name (include "kiln.port" .name) -}}
{{- end }}

{{- define "kiln.port" -}}
{{- get (dict "gateway" "7450" "storage-svc" "7461" "pool-svc" "7462" "job-svc" "7463" "monitor-svc" "7464") . -}}
{{- end }}

{{/* Directory below /var/lib/kiln, and the word in names of environment variables. */}}
{{- define "kiln.word" -}}{{- trimSuffix "-svc" . -}}{{- end }}

{{/* A value as TOML. Numbers of values are floats to Helm; none of Kiln's settings is one. */}}
{{- define "kiln.tomlValue" -}}
{{- if kindIs "string" . -}}{{ . | quote }}
{{- else if kindIs "float64" . -}}{{ int64 . }}
{{- else -}}{{ toJson . }}
{{- end -}}
{{- end }}

{{/* Settings as TOML: first the keys, then the sections. */}}
{{- define "kiln.toml" -}}
{{- range $key, $value := . }}{{ if not (kindIs "map" $value) }}
{{ $key }} = {{ include "kiln.tomlValue" $value }}
{{- end }}{{ end }}
{{- range $key, $value := . }}{{ if kindIs "map" $value }}

[{{ $key }}]
{{- range $name, $inner := $value }}
{{ $name }} = {{ include "kiln.tomlValue" $inner }}
{{- end }}
{{- end }}{{ end }}
{{- end }}

{{/* All settings of a service that are no secret; (dict "root" $ "name" "job-svc" "service" {...}) */}}
{{- define "kiln.config" -}}
{{- $root := .root }}
{{- $own := dict "listen" (printf "0.0.0.0:%s" (include "kiln.port" .name))
    "data_dir" (printf "/var/lib/kiln/%s" (include "kiln.word" .name))
    "cluster_key_file" "/run/secrets/kiln/cluster-key"
    "database_url_file" "/run/secrets/kiln/database-url" }}
{{- if ne .name "gateway" }}{{ $_ := set $own "amqp_prefix" $root.Values.amqpPrefix }}{{ end }}
{{- if $root.Values.tls.enabled }}
{{- $_ := set $own "tls_cert_file" "/run/secrets/kiln-tls/tls.crt" }}
{{- $_ := set $own "tls_key_file" "/run/secrets/kiln-tls/tls.key" }}
{{- $_ := set $own "tls_ca_file" "/run/secrets/kiln-tls/ca.crt" }}
{{- end }}
{{- if and $root.Values.tls.publicSecret (has .name (list "gateway" "storage-svc")) }}
{{- $_ := set $own "public_tls_cert_file" "/run/secrets/kiln-public-tls/tls.crt" }}
{{- $_ := set $own "public_tls_key_file" "/run/secrets/kiln-public-tls/tls.key" }}
{{- end }}
{{- if eq .name "gateway" }}
{{- range $of := list "storage" "pool" "job" "monitor" }}
{{- $_ := set $own (printf "%s_endpoint" $of) (include "kiln.url" (dict "root" $root "name" (printf "%s-svc" $of))) }}
{{- end }}
{{- $_ := set $own "public_blob_endpoint" $root.Values.publicEndpoints.blob }}
{{- $_ := set $own "batch_endpoint" $root.Values.publicEndpoints.batch }}
{{- else if eq .name "storage-svc" }}
{{- $_ := set $own "blob_listen" "0.0.0.0:7451" }}
{{- $_ := set $own "public_blob_endpoint" $root.Values.publicEndpoints.blob }}
{{- else if eq .name "pool-svc" }}
{{- $_ := set $own "control_endpoint" (include "kiln.url" (dict "root" $root "name" "pool-svc")) }}
{{- $_ := set $own "work_endpoint" (include "kiln.url" (dict "root" $root "name" "job-svc")) }}
{{- $_ := set $own "public_blob_endpoint" $root.Values.publicEndpoints.blob }}
{{- $_ := set $own "batch_endpoint" $root.Values.publicEndpoints.batch }}
{{- if .service.localNodes.enabled }}
{{- $_ := set $own "local" (dict "nodes_dir" "/var/lib/kiln/nodes" "agent_command" (list "kiln" "agent") "max_nodes" .service.localNodes.max) }}
{{- end }}
{{- end }}
{{- include "kiln.toml" (mergeOverwrite $own (deepCopy (.service.config | default dict))) | trim }}
{{- end }}

#!/usr/bin/env bash
# Files with the published definitions of the operators' kinds that the chart can make, from their Go modules.
set -euo pipefail
folder() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }
ls "$(folder github.com/prometheus-operator/prometheus-operator@v0.85.0)"/example/prometheus-operator-crd/monitoring.coreos.com_{servicemonitors,podmonitors,prometheusrules}.yaml
ls "$(folder sigs.k8s.io/gateway-api@v1.5.1)"/config/crd/standard/gateway.networking.k8s.io_httproutes.yaml
ls "$(folder github.com/kedacore/keda/v2@v2.21.0)"/config/crd/bases/keda.sh_scaledobjects.yaml

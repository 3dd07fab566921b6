#!/usr/bin/env bash
# A kind cluster with KServe, our images and an overlay: `manifests/kind/up.sh --help`.
# Versions: kserve-deps.env of KServe (2026-08-21). It was checked with shellcheck and --dry-run; it was not run where it was written.
set -euo pipefail

CLUSTER=serinus
MODE=standard
OVERLAY=manifests/overlays/local
SERVICES=()
IMAGES=(ensemble_server-fraud_features)
DRY_RUN=false
DOWN=false

NODE_IMAGE=${NODE_IMAGE:-kindest/node:v1.34.0}
CERT_MANAGER_VERSION=${CERT_MANAGER_VERSION:-v1.17.0}
GATEWAY_API_VERSION=${GATEWAY_API_VERSION:-v1.5.1}
ENVOY_GATEWAY_VERSION=${ENVOY_GATEWAY_VERSION:-v1.8.1}
KNATIVE_VERSION=${KNATIVE_VERSION:-v1.21.1}
METRICS_SERVER_VERSION=${METRICS_SERVER_VERSION:-v0.8.0}
KSERVE_VERSION=${KSERVE_VERSION:-v0.20.0}
KSERVE_CHARTS=${KSERVE_CHARTS:-oci://ghcr.io/kserve/charts}

usage() {
  cat <<'HELP'
Create a kind cluster with KServe, load images of ours and apply an overlay and services.

  manifests/kind/up.sh [--mode standard|knative] [--cluster NAME] [--overlay FOLDER]
                       [--image NAME]... [--service FOLDER]... [--dry-run] [--down]

  --mode     standard: Deployments, Gateway API and Envoy Gateway (spec.canary). knative: Knative Serving and Kourier
             (canaryTrafficPercent). Default: standard.
  --image    an image that `make images` has built, without its tag; repeatable. Default: ensemble_server-fraud_features.
  --service  a kustomization of InferenceServices to apply at the end; repeatable.
  --dry-run  print every command, run none.
  --down     delete the cluster.

Needs kind, kubectl, helm and docker. Examples:

  make images && manifests/kind/up.sh --service inferenceservices/fraud/fused
  manifests/kind/up.sh --mode knative --image torch_server-recommender_features --service inferenceservices/recommender/knative/v1
  curl -H 'Host: fraud-default.example.com' http://127.0.0.1:8080/v2/health/ready
HELP
}

fail() {
  printf 'up.sh: %s\n' "$1" >&2
  exit 2
}

value() {
  [[ $# -ge 2 && $2 != --* ]] || fail "$1 needs a value; see --help"
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --mode) value "$@"; MODE=$2; shift 2 ;;
    --cluster) value "$@"; CLUSTER=$2; shift 2 ;;
    --overlay) value "$@"; OVERLAY=$2; shift 2 ;;
    --image) value "$@"; [[ ${IMAGES_GIVEN:-} ]] || IMAGES=(); IMAGES_GIVEN=yes; IMAGES+=("$2"); shift 2 ;;
    --service) value "$@"; SERVICES+=("$2"); shift 2 ;;
    --dry-run) DRY_RUN=true; shift ;;
    --down) DOWN=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) fail "$1: unknown; see --help" ;;
  esac
done
[[ $MODE == standard || $MODE == knative ]] || fail "--mode $MODE: expected standard or knative"

cd "$(dirname "$0")/../.."
for folder in "$OVERLAY" ${SERVICES[@]+"${SERVICES[@]}"}; do
  [[ -f $folder/kustomization.yaml ]] || fail "$folder: no kustomization.yaml there"
done
TAG=${TAG:-$(sed -n 's/^__version__ = "\(.*\)"/\1/p' runtimes/serinus/__init__.py)}
CONTEXT=kind-$CLUSTER

run() {
  printf '+ %s\n' "$(printf '%q ' "$@")"
  $DRY_RUN || "$@"
}

kube() {
  run kubectl --context "$CONTEXT" "$@"
}

chart() {
  run helm --kube-context "$CONTEXT" upgrade --install --wait --timeout 10m "$@"
}

if ! $DRY_RUN; then
  for tool in kind kubectl helm docker; do
    command -v "$tool" >/dev/null || fail "$tool is not installed"
  done
fi
if $DOWN; then
  run kind delete cluster --name "$CLUSTER"
  exit 0
fi

if $DRY_RUN || ! kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; then
  run kind create cluster --name "$CLUSTER" --image "$NODE_IMAGE" --config manifests/kind/cluster.yaml --wait 5m
fi
for image in "${IMAGES[@]}"; do
  run kind load docker-image "$image:$TAG" --name "$CLUSTER"
done

kube apply -f "https://github.com/cert-manager/cert-manager/releases/download/$CERT_MANAGER_VERSION/cert-manager.yaml"
kube -n cert-manager wait --for=condition=Available deployment --all --timeout=5m
if $DRY_RUN || ! kubectl --context "$CONTEXT" get namespace kserve >/dev/null 2>&1; then
  kube create namespace kserve
fi

if [[ $MODE == standard ]]; then
  kube apply --server-side -f "https://github.com/kubernetes-sigs/gateway-api/releases/download/$GATEWAY_API_VERSION/standard-install.yaml"
  chart eg oci://docker.io/envoyproxy/gateway-helm --version "$ENVOY_GATEWAY_VERSION" \
    --namespace envoy-gateway-system --create-namespace
  kube apply -f manifests/kind/gateway.yaml
  kube apply -f "https://github.com/kubernetes-sigs/metrics-server/releases/download/$METRICS_SERVER_VERSION/components.yaml"
  kube -n kube-system patch deployment metrics-server --type=json \
    -p '[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--kubelet-insecure-tls"}]'
  controller=(
    --set kserve.controller.deploymentMode=Standard
    --set kserve.controller.gateway.ingressGateway.enableGatewayApi=true
    --set kserve.controller.gateway.ingressGateway.className=envoy
    --set kserve.controller.gateway.ingressGateway.kserveGateway=kserve/kserve-ingress-gateway
    --set kserve.controller.gateway.disableIstioVirtualHost=true
  )
else
  base=https://github.com/knative/serving/releases/download/knative-$KNATIVE_VERSION
  kube apply -f "$base/serving-crds.yaml"
  kube apply -f "$base/serving-core.yaml"
  kube apply -f "https://github.com/knative-extensions/net-kourier/releases/download/knative-${KNATIVE_VERSION%.*}.0/kourier.yaml"
  kube -n knative-serving patch configmap config-network --type=merge \
    -p '{"data": {"ingress-class": "kourier.ingress.networking.knative.dev"}}'
  kube -n knative-serving patch configmap config-features --type=merge \
    -p '{"data": {"kubernetes.podspec-nodeselector": "enabled", "kubernetes.podspec-tolerations": "enabled", "kubernetes.podspec-securitycontext": "enabled"}}'
  kube -n kourier-system patch service kourier --type=merge \
    -p '{"spec": {"type": "NodePort", "ports": [{"name": "http2", "port": 80, "targetPort": 8080, "nodePort": 30080}]}}'
  kube -n knative-serving wait --for=condition=Available deployment --all --timeout=5m
  controller=(
    --set kserve.controller.deploymentMode=Knative
    --set kserve.controller.gateway.disableIstioVirtualHost=true
  )
fi

chart kserve-crd "$KSERVE_CHARTS/kserve-crd" --version "$KSERVE_VERSION" --namespace kserve
chart kserve "$KSERVE_CHARTS/kserve-resources" --version "$KSERVE_VERSION" --namespace kserve "${controller[@]}"
kube -n kserve wait --for=condition=Available deployment --all --timeout=5m

kube apply --server-side -k "$OVERLAY"
for service in ${SERVICES[@]+"${SERVICES[@]}"}; do
  kube apply -k "$service"
done
if [[ ${#SERVICES[@]} -gt 0 ]]; then
  kube wait --for=condition=Ready inferenceservice --all --timeout=10m
fi
printf 'up.sh: the gateway answers at http://127.0.0.1:8080 by the Host header; kubectl get inferenceservices shows the hosts\n'

"""InferenceServices on one machine: YAML, admission rules, plan, Envoy, processes."""

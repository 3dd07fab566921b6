"""What the plan says, as processes behind the real Envoy."""

"""Training, assembly and evaluation of the embedded model wan_tiny."""

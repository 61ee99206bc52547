"""einfuse: write attention as einsums, get fused, differentiable, verified kernels."""

"""The kernels: pointers, blocks and sums. They neither validate nor differentiate; `fused_*` beside this folder do."""

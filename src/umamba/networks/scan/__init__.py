"""The selective scan and its backends (Gu and Dao 2023, section 3.2; the arguments are those of mamba_ssm).

For each channel d and state n:

    h[t] = exp(delta[t] A[n]) h[t-1] + delta[t] B[n, t] u[t]
    y[t] = sum over n of C[n, t] h[t] + D u[t],   out[t] = y[t] silu(z[t])
"""

from umamba.networks.scan.select import BACKENDS, resolve_backend, selective_scan, without_autocast

__all__ = ["BACKENDS", "resolve_backend", "selective_scan", "without_autocast"]

# Segments /input into /output with the networks in /weights; needs no network at run time. docs/hospital.md has the commands.
#   docker build -t umamba .                                  for CPUs
#   docker build -t umamba:cuda --build-arg DEVICE=cuda .     for NVIDIA GPUs
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG DEVICE=cpu
# Where pip finds PyTorch without CUDA, which is several GB smaller. The default index serves the CUDA build.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python3 -m venv /opt/umamba
COPY constraints.txt /build/constraints.txt
RUN version="$(sed -n 's/^torch==//p' /build/constraints.txt)" \
    && case "${DEVICE}" in \
        cpu) /opt/umamba/bin/pip install --no-cache-dir --index-url "${TORCH_CPU_INDEX}" "torch==${version}" ;; \
        cuda) /opt/umamba/bin/pip install --no-cache-dir "torch==${version}" ;; \
        *) echo "DEVICE=${DEVICE}: must be cpu or cuda" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE /build/
COPY src /build/src
COPY configs /build/configs
COPY experiments /build/experiments
COPY slurm /build/slurm
RUN extras="dicom" \
    && if [ "${DEVICE}" = cpu ]; then extras="dicom,cpu"; fi \
    && /opt/umamba/bin/pip install --no-cache-dir --constraint /build/constraints.txt "/build[${extras}]"

FROM python:${PYTHON}-slim-bookworm
RUN useradd --uid 1000 --create-home umamba
COPY --from=build /opt/umamba /opt/umamba
COPY docker/segment.sh /opt/umamba/bin/umamba-segment
# Caches of compiled code in a place that any user of the container may write.
ENV PATH=/opt/umamba/bin:$PATH \
    XDG_CACHE_HOME=/tmp/cache \
    NUMBA_CACHE_DIR=/tmp/cache/numba \
    MPLCONFIGDIR=/tmp/cache/matplotlib \
    WANDB_MODE=disabled
USER 1000
WORKDIR /tmp
ENTRYPOINT ["/bin/sh", "/opt/umamba/bin/umamba-segment"]

# docker build -t scdfm .
# docker run --rm -v "$PWD:/data" scdfm inspect screen.h5ad
# PyTorch is its build for CPUs; for a GPU take --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
FROM python:3.12 AS wheel
WORKDIR /source
COPY . .
RUN git config --global --add safe.directory /source && pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
# Extras of the wheel are named by its path; constraints pin what the tests ran with.
RUN pip install --no-cache-dir -c /tmp/constraints.txt --extra-index-url "$TORCH_INDEX" \
      "$(echo /tmp/wheels/scdfm-*.whl)[drugs]" \
    && rm -r /tmp/wheels /tmp/constraints.txt
ENV MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /data
ENTRYPOINT ["scdfm"]

# eyas in a container. On a machine with GPUs:
#
#   docker build -t eyas .
#   docker run --gpus all --ipc=host -u "$(id -u):$(id -g)" -e HOME=/data -v "$PWD:/data" eyas run mine.yaml
#
# Recipes, runs and cache lie in the folder mounted at /data, what is fetched from the hub too (HOME). docs/status.md says whether anybody has built this.
FROM python:3.12-slim

# git: a run records the state of its working folder. gcc: Triton compiles what `compute.compile` asks for.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /eyas
COPY pyproject.toml constraints.txt README.md LICENSE ./
# torch first: it is by far the largest layer, and changes least. The default wheel brings CUDA; for a small CPU image:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t eyas:cpu .
ARG TORCH_INDEX=
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url $TORCH_INDEX} torch
COPY embedding embedding
COPY data_prep data_prep
COPY eval eval
COPY train train
COPY launch launch
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt '.[eval,demo,wandb,lora,mine,documents,clean]'

# Nobody needs root in there; -u, as above, makes what is written yours.
RUN useradd --create-home eyas
USER eyas
WORKDIR /data
ENTRYPOINT ["eyas"]
CMD ["--help"]

# make demo | make test: each sets up .venv first and does nothing when nothing changed
PYTHON ?= python3
BIN := .venv/bin
RUN ?= build/demo/student
DATA ?= build/demo/labelled
CONFIG ?= train/configs/demo.yaml
NUM_GPUS ?= 1
SHARDS ?= build/demo/shards
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: help setup demo learn elastic test smoke matrix lint format type shards pretrain probe review ui export-check plan-check bench-embed bench-serve bench-probe bench-step bench-gpu bench-stream bench-remote bench-sharding mask-stats formats phi fuzz torture deploy-test slurm-test deploy-check stack image-test
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@

.venv/.dev: .venv/.ready
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

setup: .venv/.ready  ## virtual environment with everything

demo: setup  ## the whole line on generated and real recordings, in minutes
	$(BIN)/us-jepa demo

test: setup  ## all tests but the slow ones, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

smoke: setup  ## every config: costs, and two steps at reduced size
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/train/test_smoke.py

matrix: setup  ## the slow tests: ZeRO x ranks x accumulation, resumed everywhere; kills, stops, full disks; launchers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests --ignore tests/train/test_smoke.py --ignore tests/deploy

lint: .venv/.dev  ## format and rules, checked
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

format: .venv/.dev  ## format and mend
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

type: .venv/.dev  ## mypy --strict
	$(BIN)/mypy

shards: setup  ## SRC=folder OUT=folder [ARGS="--pixels public ..."]
	$(BIN)/us-jepa shards $(SRC) $(OUT) $(ARGS)

pretrain: setup  ## CONFIG=file NUM_GPUS=n [ARGS="optim.lr=3e-4 ..."]
	$(BIN)/us-jepa pretrain --num-gpus $(NUM_GPUS) --config $(CONFIG) $(ARGS)

probe: setup  ## RUN=run directory DATA=labelled folder, or ENCODERS=a,b SETS=x,y OUT=folder [ARGS="--protocol fair,paper,knn,attentive --few-shot --robustness"]
	$(BIN)/us-jepa probe $(if $(ENCODERS),--encoders $(ENCODERS) --sets $(SETS) --out $(OUT),$(RUN) --data $(DATA)) $(ARGS)

review: setup  ## MLflow with links: health of pretrainings, comparison of probes
	$(BIN)/python -m pipeline.ui --review

ui: setup  ## MLflow on build/mlflow.db
	$(BIN)/python -m pipeline.ui

formats: setup  ## every transfer syntax x photometric interpretation, decoded and compared (writes the table of README.md)
	$(BIN)/python -m pipeline.bench.formats --write README.md

phi: setup  ## what is left of planted letters, how much of the sector is kept; fails above the limits
	$(BIN)/python -m pipeline.bench.phi

fuzz: setup  ## 5,000 broken and hostile files: one outcome each, memory within limits
	$(BIN)/python -m pipeline.bench.fuzz

mask-stats: setup  ## mask recipes on whole frames, narrow, phased, convex, linear regions: tokens, fill, redraws, bias
	$(BIN)/python -m pipeline.bench.mask_stats

bench-remote: setup  ## after make bench-stream: from S3 over a slow and faulty link: first batch, rate, waiting
	$(BIN)/python -m pipeline.bench.remote

bench-step: setup  ## the step beside a plain-PyTorch I-JEPA on this CPU, masks, DeepSpeed's share; exit code 1 below a gate
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.bench.step

bench-gpu: setup  ## ViT-S, B and L on a CUDA device: speed, memory, compiled, side stream, syncs, fp8, profile
	$(BIN)/python -m pipeline.bench.gpu

plan-check: setup  ## us-jepa plan beside a job of 10^4 frames that really runs; exit code 1 above 25 %
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.bench.plan_check

export-check: setup  ## exports in fresh environments: timm alone, onnxruntime alone, transformers alone; installs torch twice
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow tests/deploy/test_fresh_environments.py

bench-embed: setup  ## us-jepa embed beside the bare encoder, on the same frames
	$(BIN)/python -m pipeline.bench.embed

bench-probe: setup  ## the fair probe beside cold scikit-learn and the paper's loop, on the same grid; exit code 1 below a gate
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.bench.probe

bench-serve: setup  ## us-jepa serve with 16 clients beside the offline way, on the same frames
	$(BIN)/python -m pipeline.bench.serve

.venv/.learn: .venv/.ready
	$(BIN)/pip install --quiet -e ".[learn]"
	touch $@

learn: .venv/.learn  ## [SRC=folder with the real sets] does it learn? a probe of small encoders that are pretrained here
	$(BIN)/python -m pipeline.bench.learn --src $(or $(SRC),../shared/data)

elastic: setup  ## after make demo: a run killed and resumed on 2, 1 and 4 ranks sees the same keys step by step
	$(BIN)/python -m pipeline.bench.elastic

torture: setup  ## kill -9 at 50 random moments; the bytes must not change
	$(BIN)/python -m pipeline.bench.torture

bench-sharding: setup  ## sharding beside the obvious pipeline on one core; planning 10^7 files
	$(BIN)/python -m pipeline.bench.sharding
	$(BIN)/python -m pipeline.bench.plan

build/bench-venv/.ready: pipeline/bench/requirements.txt .venv/.ready
	$(PYTHON) -m venv build/bench-venv
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
		$$(build/bench-venv/bin/python -c "import site; print(site.getsitepackages()[0])")/main.pth
	build/bench-venv/bin/pip install --quiet -r pipeline/bench/requirements.txt
	touch $@

bench-stream: build/bench-venv/.ready  ## the stream beside webdataset, litdata and mosaic streaming, on the same samples
	$(BIN)/python -m pipeline.bench.order
	build/bench-venv/bin/python -m pipeline.bench.stream

APT_GET := apt-get install --yes --no-install-recommends

deploy-test: setup  ## slow tests of serving, of Slurm, PostgreSQL and S3, of two hosts, of fresh environments; skips what is absent
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/deploy

slurm-test: setup  ## as root on Debian: installs Slurm, runs deploy/slurm end to end on this machine
	(command -v slurmctld && command -v munged) || $(APT_GET) slurmctld slurmd slurm-client munge
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/deploy/test_slurm.py

.venv/.deploy-check: .venv/.ready
	$(BIN)/pip install --quiet -e ".[deploy-check]"
	touch $@

deploy-check: .venv/.deploy-check  ## every file of deploy/ against the schema or linter of what will read it
	$(BIN)/python -m deploy.check

stack: setup  ## MLflow with accounts on PostgreSQL and S3, without Docker, until Ctrl-C
	ls /usr/lib/postgresql/*/bin/initdb || $(APT_GET) postgresql
	$(BIN)/python -m deploy.stack

image-test:  ## as root on Debian 12: builds the CPU image without Docker, runs the demo in it
	(command -v buildah && command -v debootstrap) || $(APT_GET) buildah debootstrap crun golang-github-containers-common
	tests/deploy/image_test.sh

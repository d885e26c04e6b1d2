# Everything is done by packaging/bootstrap.py, which needs Python 3.11 or newer and nothing else.
# Without make (as on Windows): python packaging/bootstrap.py run
# More for the command behind it: make test ARGS="-k download", make run ARGS="--device numpy"

PYTHON ?= $(shell command -v python3 2>/dev/null || command -v python 2>/dev/null || echo python3)
ARGS ?=

.PHONY: run test check bench fuzz conformance fetch-models package lock clean help

run test check bench fuzz conformance fetch-models package lock clean:
	@exec "$(PYTHON)" packaging/bootstrap.py $@ $(ARGS)

help:
	@exec "$(PYTHON)" packaging/bootstrap.py --help

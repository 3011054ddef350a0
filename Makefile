.PHONY: install serve demo test test-ecosystem test-page lint bench

install:            ## create .venv and install the project
	scripts/install

serve: install      ## serve the default model on 127.0.0.1:8000
	.venv/bin/myna serve

demo:               ## run an example against a server of its own
	scripts/install examples && scripts/demo

test:               ## run all tests
	scripts/install test && .venv/bin/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-ecosystem:     ## test clients of other projects (LangGraph, LlamaIndex, DSPy, ...), in an environment of their own
	scripts/test-ecosystem

test-page:          ## test the live page in a headless Chromium
	scripts/test-page

lint:               ## check style, types, imports, wording and the layout of tests
	scripts/install test lint && scripts/lint

bench:              ## measure through HTTP and print the figures, of requests and of whole applications
	scripts/install && .venv/bin/python -m bench && .venv/bin/python -m bench.workloads

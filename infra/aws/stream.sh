#!/bin/sh
# AWS_LAMBDA_EXEC_WRAPPER: Lambda gives it the command of its own runtime, whose interpreter runs the one that streams.
cd "$LAMBDA_TASK_ROOT" || exit 1
exec "$1" -m shared.lambda_runtime

#!/usr/bin/env bash
# tests/run.sh PYTHON [OPTION ...]: the tests, by two processes of one thread each beside each other (with more threads,
# tiny operations on a busy machine mostly wait for each other). The second runs the Triton kernels in the interpreter,
# by the files that name the fixture `backend`, and then the folders in $later, so that both end at about the same time;
# its output comes last. CINEMA_TEST_FILES="a b": these files alone.
python=$1 log=$(dirname "$1")/second.log
shift
later="tests/benchmarks tests/kernels tests/models tests/phantom tests/metrics tests/evaluation"
export OMP_NUM_THREADS=1

second() {
    trap 'kill $child; exit 130' TERM
    TRITON_INTERPRET=1 "$python" -m pytest -q "$@" $(grep -rlw backend ${CINEMA_TEST_FILES:-tests} --include='test_*.py') &
    child=$!
    wait $child
    status=$?
    if [ -z "$CINEMA_TEST_FILES" ]; then
        "$python" -m pytest -q "$@" $later &
        child=$!
        wait $child || status=$?
    fi
    return $status
}

second "$@" >"$log" 2>&1 &
second=$!
trap 'kill $second; exit 130' INT TERM
if [ -z "$CINEMA_TEST_FILES" ]; then
    "$python" -m pytest -q "$@" tests ${later//tests\//--ignore=tests/}
else
    "$python" -m pytest -q "$@" $CINEMA_TEST_FILES
fi
first=$?
wait $second
second=$?
printf '\nThe second process, with the Triton kernels in the interpreter:\n'
cat "$log"
[ $first -eq 0 ] && [ $second -eq 0 ]

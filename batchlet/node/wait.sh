# A worker rank while it waits: the connection to the host of its node's workers is file descriptor 3.
# It passes signals on, for the client, and ends when the host says so (with its exit code) or is gone.
# One rank of a node starts the host, with its socket as file descriptor 4 and its orders as 5, and sees it end.
# Until it has a seat, it can only end.
told() {
    [ -z "$seated" ] && exit $((128 + $1))
    hit=1
    echo "signalled $1" >&3
}
seated=$BATCHLET_SEATED
host=
trap 'told 15' TERM
trap 'told 2' INT
if [ -n "$BATCHLET_HOST_PYTHON" ]; then
    python=$BATCHLET_HOST_PYTHON
    unset BATCHLET_HOST_PYTHON
    "$python" -m batchlet.node quick <&5 3<&- 5<&- &
    host=$!
    exec 4<&- 5<&-
fi
code=0
while :; do
    if read -r word number <&3; then
        case $word in
            seated) seated=1 ;;
            end) code=$number && break ;;
            last) code=$number ;; # and the host is about to end as well
        esac
    elif [ -n "$hit" ]; then
        hit=
    else
        break
    fi
done
if [ -n "$host" ]; then
    wait "$host"
    status=$?
    # A signal interrupts the waiting.
    while kill -0 "$host" 2>/dev/null; do
        wait "$host"
        status=$?
    done
    if [ -z "$seated" ]; then
        # 2: something in the input is wrong, which rank 0 says.
        [ "$status" = 2 ] && exit 2
        echo "batchlet: error: The host of this node's workers ended while it started; its output says why." >&2
        code=81
    fi
fi
exit "$code"

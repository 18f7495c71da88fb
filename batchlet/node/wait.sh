# A worker rank while it waits: the connection to the agent of its node is file descriptor 3.
# It passes signals on, for the client, and ends when the agent says so, with its exit code.
# One rank of a node starts the agent, with its end of the socket as file descriptor 4 and its orders as 5, and sees it end.
# Until the agent has accepted it, it can only end.
# If the agent dies it becomes Python again, which finds or starts another one; what that needs is on file descriptor 5.
told() {
    [ -z "$accepted" ] && exit $((128 + $1))
    hit=1
    echo "signalled $1" 2>/dev/null >&3
}
accepted=$BATCHLET_ACCEPTED
python=$BATCHLET_AGENT_PYTHON
code=$BATCHLET_AGENT_CODE
added=$BATCHLET_AGENT_ADDED
starts=$BATCHLET_AGENT_STARTS
agent=
ended=
unset BATCHLET_ACCEPTED BATCHLET_AGENT_PYTHON BATCHLET_AGENT_CODE BATCHLET_AGENT_ADDED BATCHLET_AGENT_STARTS
# The agent may be gone when it is told something.
trap : PIPE
trap 'told 15' TERM
trap 'told 2' INT
if [ -n "$starts" ]; then
    "$python" -c "$code" batchlet.node.agent <&5 3<&- 5<&- &
    agent=$!
    exec 4<&-
    # What the agent was to have beside the variables of this rank.
    unset $added
fi
status=0
over=
while :; do
    if read -r word number <&3; then
        case $word in
            accepted) accepted=1 ;;
            end) status=$number && over=1 && break ;;
            # And the agent is about to end as well.
            last) status=$number && over=1 && accepted=${accepted:-refused} ;;
            ending) status=$number && over=1 ;;
        esac
    elif [ -n "$hit" ]; then
        hit=
    else
        break
    fi
done
if [ -n "$agent" ]; then
    # What the shell itself says of a process that was killed, rank 0 says better.
    wait "$agent" 2>/dev/null
    ended=$?
    # A signal interrupts the waiting.
    while kill -0 "$agent" 2>/dev/null; do
        wait "$agent" 2>/dev/null
        ended=$?
    done
fi
# One that has not accepted anybody yet says itself what it fails of, unless it was killed.
if [ -z "$over" ] && [ -n "$accepted" -o "${ended:-0}" -gt 128 ] && [ -r /proc/self/fd/5 ]; then
    exec "$python" -c "$code" batchlet.node.again "$ended" </proc/self/fd/5 3<&- 5<&-
fi
if [ -n "$agent" ]; then
    # It was killed, and its scratch is being removed: Slurm would kill that shell too if this node had no rank any more.
    [ "$ended" -gt 128 ] && sleep 2
    if [ -z "$accepted" ]; then
        # 2: something in the input is wrong, which rank 0 says.
        [ "$ended" = 2 ] && exit 2
        echo "batchlet: error: The host of this node's workers ended while it started; its output says why." >&2
        status=81
    fi
fi
exit "$status"

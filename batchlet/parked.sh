# A worker rank while it waits: the connection to the host of its node's workers is file descriptor 3.
# It passes signals on, for the client, and ends when the host says so (with its exit code) or is gone.
trap 'hit=1; echo "{\"op\": \"signalled\", \"number\": 15}" >&3' TERM
trap 'hit=1; echo "{\"op\": \"signalled\", \"number\": 2}" >&3' INT
code=0
while :; do
    if IFS= read -r line <&3; then
        case $line in
            *'"end"'*)
                code=${line##*'"code":'}
                exit "${code%%[!0-9]*}"
                ;;
            *'"last"'*) # the host is about to end, and this rank, which has started it, sees to that
                code=${line##*'"code":'}
                code=${code%%[!0-9]*}
                ;;
        esac
    elif [ -n "$hit" ]; then
        hit=
    else
        break
    fi
done
exit "$code"

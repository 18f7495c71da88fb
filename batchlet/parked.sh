# A worker rank while it waits: the connection to the host of its node's workers is file descriptor 3.
# It passes signals on, for the client, and ends when the host says so (with its exit code) or is gone.
trap 'hit=1; echo "signalled 15" >&3' TERM
trap 'hit=1; echo "signalled 2" >&3' INT
code=0
while :; do
    if read -r word number <&3; then
        case $word in
            end) exit "$number" ;;
            last) code=$number ;; # and the host is about to end as well
        esac
    elif [ -n "$hit" ]; then
        hit=
    else
        break
    fi
done
exit "$code"

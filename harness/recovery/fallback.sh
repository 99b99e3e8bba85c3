# Reached if Python, or the harness, could not even start on this host (no virtual environment here, a broken mount, out of
# memory), or was killed. The job goes back into the queue, without the host if that is to blame, a few times in a row at most.
harness_fallback() {
  local status=$1 run=$2 limit=$3 host=$SLURMD_NODENAME job=$SLURM_JOB_ID start=${SLURM_RESTART_COUNT:-0}
  local why bad shown partition excluded tries left
  trap '' TERM # requeueing ends this script too, and the exclusion comes after it
  why="the harness could not start on $host (status $status)" bad="\"$host\""
  [ "$status" -ne 137 ] || why="the harness was killed on $host (SIGKILL)" bad="" # the host is well
  echo "$why"
  until shown=$(scontrol --oneliner show job "$job"); do sleep 5; done
  case "$shown" in
    *" JobState=RUNNING "*" Restarts=$start "*) ;;
    *) exit 70 ;; # cancelled, or requeued already
  esac
  tries=$(tac "$run/events.jsonl" | sed '/"event": "attempt_start"/q;/"event": "submitted"/q' | grep -c '"how": "batch script"')
  if [ "$tries" -ge "$limit" ]; then
    printf '{"time": %s, "event": "gave_up", "attempt": null, "step": null, "node": "%s", "why": "%s, after %s such starts in a row"}\n' \
      "$(date +%s)" "$host" "$why" "$tries" >>"$run/events.jsonl"
    exit 67
  fi
  printf '{"time": %s, "event": "restart", "attempt": null, "step": null, "node": "%s", "reason": "unknown", "how": "batch script", "why": "%s", "starts": "%s.%s", "bad_nodes": [%s]}\n' \
    "$(date +%s)" "$host" "$why" "$job" $((start + 1)) "$bad" >>"$run/events.jsonl"
  partition=$(sed -n 's/.* Partition=\([^ ]*\).*/\1/p' <<<"$shown")
  excluded=$(sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p' <<<"$shown")
  case "$excluded" in "" | "(null)") excluded=$host ;; *) excluded=$excluded,$host ;; esac
  left=$(sinfo --noheader --Node --partition "$partition" --states idle,alloc,mix,comp --format %N | sort -u | grep -cvxF -f <(scontrol show hostnames "$excluded"))
  until scontrol requeue "$job"; do
    sleep 5
    case $(scontrol --oneliner show job "$job") in *" JobState=RUNNING "*) ;; *) break ;; esac
  done
  [ -z "$bad" ] || [ "$left" -lt "$SLURM_JOB_NUM_NODES" ] || scontrol update jobid="$job" excnodelist="$excluded"
  scontrol update jobid="$job" starttime=now+$((10 * (tries + 1)))
  exit 70
}

#!/usr/bin/env bash
# A real Slurm of one node on this machine, for tests: Debian's slurm-wlm and munge, run as root, without systemd.
# Started anew at each call; prints nothing when all is well. Works in /tmp/eyas-slurm.
set -euo pipefail

home=/tmp/eyas-slurm
node="$(hostname -s)"

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null
fi

for daemon in slurmd slurmctld; do # by the ids that our own daemons left
  if [ -f "$home/$daemon.pid" ]; then kill "$(cat "$home/$daemon.pid")" 2>/dev/null || true; fi
done
sleep 1
mkdir -p "$home/state" "$home/spool" /run/munge
if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then
  [ -s /etc/munge/munge.key ] || (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
  chown -R munge: /etc/munge /run/munge
  runuser -u munge -- /usr/sbin/munged --force
fi

# More processors than there may be: several jobs at once must be possible on a small machine. Credentials live
# briefly, because a job that is queued again waits until the old one's has run out.
cat >"$home/slurm.conf" <<CONF
ClusterName=eyas
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=10
MinJobAge=600
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmctldLogFile=$home/slurmctld.log
SlurmdLogFile=$home/slurmd.log
NodeName=$node NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=$node MaxTime=00:10:00 State=UP
CONF
mkdir -p /etc/slurm
ln -sf "$home/slurm.conf" /etc/slurm/slurm.conf

slurmctld -c
slurmd
for _ in $(seq 30); do
  if sinfo -h -p main -o %t 2>/dev/null | grep -qE '^(idle|mix|alloc)'; then exit 0; fi
  sleep 1
done
echo "Slurm did not come up; see $home/slurmctld.log and $home/slurmd.log" >&2
tail -n 20 "$home/slurmctld.log" "$home/slurmd.log" >&2
exit 1

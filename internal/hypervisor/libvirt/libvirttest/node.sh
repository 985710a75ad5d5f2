# The first process of a node: $1 is the node's directory, $2 its name. When it is
# killed everything in the node is, as at a loss of power. A libvirtd that ends is
# started anew, as a service manager does.
set -e
d=$1
hostname "$2"
for p in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
  mkdir -p "${p#*:}"
  mount --bind "$d/${p%%:*}" "${p#*:}"
done
# libvirt-lxc cannot start a container on a hybrid of both kinds of cgroups.
if mountpoint -q /sys/fs/cgroup/unified; then umount -l /sys/fs/cgroup/unified || true; fi
# A /dev of its own, without kvm, so that guests are emulated everywhere alike.
mkdir -p "$d/dev"
mount -t tmpfs tmpfs "$d/dev" -o mode=755
mkdir "$d/dev/pts" "$d/dev/shm" "$d/dev/net"
for x in null zero full random urandom tty net/tun fuse; do
  [ ! -e "/dev/$x" ] || { : >"$d/dev/$x"; mount --bind "/dev/$x" "$d/dev/$x"; }
done
mount -t devpts devpts "$d/dev/pts" -o newinstance,ptmxmode=0666,mode=0620
ln -s pts/ptmx "$d/dev/ptmx"
mount --bind /dev/shm "$d/dev/shm"
ln -s /proc/self/fd "$d/dev/fd"
mount --move "$d/dev" /dev
while :; do
  /usr/sbin/libvirtd -f /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid &
  wait $! || true
  sleep 0.05
done

#!/bin/sh
# Decides who may log in, then becomes the broker.
set -eu

data=/var/lib/rabbitmq
definitions=$data/definitions
users=$definitions/users.json

say() { echo "synergos_mq: $*" >&2; }
fail() { say "$*"; exit 1; }

# RabbitMQ's own format: base64(salt + SHA-256(salt + password)), made here because its command
# takes the password as an argument, where every process list shows it. printf is a builtin.
password_hash() {
    salt=$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')
    digest=$({ unhex "$salt"; printf %s "$1"; } | sha256sum | cut -d' ' -f1)
    unhex "$salt$digest" | base64 | tr -d '\n'
}

unhex() {
    hex=$1
    while [ -n "$hex" ]; do
        rest=${hex#??}
        printf "\\$(printf %o "0x${hex%"$rest"}")"
        hex=$rest
    done
}

json_string() { printf '"%s"' "$(printf %s "$1" | sed 's/[\\"]/\\&/g')"; }

write_user() {
    name=$(json_string "$1")
    umask 077
    cat > "$users.new" << END
{
  "users": [{
    "name": $name,
    "password_hash": "$(password_hash "$2")",
    "hashing_algorithm": "rabbit_password_hashing_sha256",
    "tags": ["administrator"]
  }],
  "permissions": [{
    "user": $name, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"
  }]
}
END
    mv "$users.new" "$users"
}

# guest is in the database if this volume was used without credentials before. The broker refuses
# it from outside meanwhile, as it does by default.
remove_guest() {
    # It waits for a broker that boots, and fails at once where none does yet.
    until rabbitmqctl -q await_startup > /dev/null 2>&1; do sleep 1; done
    if rabbitmqctl -q delete_user guest > /dev/null 2>&1; then
        say "user guest, left from a start without credentials, is deleted"
    fi
}

[ "${1:-}" = rabbitmq-server ] || exec "$@"

[ "$(id -u)" != 0 ] || fail "run as the user rabbitmq, not as root"
[ -w "$data" ] || fail "$data is not writable for uid $(id -u): chown the volume to it"

# The nodes of a cluster know each other by it.
if [ -n "${SYNMANAGER_COOKIE:-}" ]; then
    rm -f "$data/.erlang.cookie"
    (umask 277; printf %s "$SYNMANAGER_COOKIE" > "$data/.erlang.cookie")
    unset SYNMANAGER_COOKIE
elif [ ! -e "$data/.erlang.cookie" ]; then
    (umask 277; od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "$data/.erlang.cookie")
fi

mkdir -p "$definitions"
cp /etc/rabbitmq/definitions.json "$definitions/topology.json"

if [ -n "${SYNMANAGER_USERNAME+set}${SYNMANAGER_PASSWORD+set}" ]; then
    [ -n "${SYNMANAGER_USERNAME:-}" ] && [ -n "${SYNMANAGER_PASSWORD:-}" ] ||
        fail "SYNMANAGER_USERNAME and SYNMANAGER_PASSWORD go together, and neither may be blank"
    case $SYNMANAGER_USERNAME in
        guest) fail "SYNMANAGER_USERNAME must not be guest, whom the broker refuses from outside" ;;
        *[[:cntrl:]]*) fail "SYNMANAGER_USERNAME must not hold control characters" ;;
    esac
    write_user "$SYNMANAGER_USERNAME" "$SYNMANAGER_PASSWORD"
    unset SYNMANAGER_USERNAME SYNMANAGER_PASSWORD
    development=false
elif [ -e "$users" ] && ! grep -q '"name": "guest"' "$users"; then
    say "no credentials given: keeping the user that this volume was started with"
    development=false
else
    write_user guest guest
    development=true
fi

if $development; then
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="${RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS:-} -rabbit loopback_users []"
    say "##############################################################################"
    say "## WARNING: development default. Anyone who reaches port 5672 or 15672 is in,"
    say "## as user guest with password guest. For anything but a try-out, start with"
    say "##   docker run -e SYNMANAGER_USERNAME=... -e SYNMANAGER_PASSWORD=... "
    say "##############################################################################"
elif [ -d "$data/mnesia" ] && [ -n "$(ls -A "$data/mnesia")" ]; then
    remove_guest &
fi

# The Erlang VM reserves memory for every file that it may open, and some container runtimes say
# a billion.
case $(ulimit -n) in
    ? | ?? | ??? | ???? | ?????) ;;
    *) ulimit -n 65536 ;;
esac

# Debian's command sends what the broker prints to a file; the script below it does not.
if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
    shift
    set -- /usr/lib/rabbitmq/bin/rabbitmq-server "$@"
fi
exec "$@"

#!/bin/bash
# What the official image's entrypoint does, as far as the kit relies on it: as root, hand the data directory to
# postgres and go on as that user; on an empty data directory, initdb with POSTGRES_{USER,DB,PASSWORD} (or their
# _FILE forms), POSTGRES_INITDB_ARGS and POSTGRES_HOST_AUTH_METHOD, then /docker-entrypoint-initdb.d; then run.
set -Eeuo pipefail

refuse() {
    printf 'ERROR: %s\nHINT: %s\n' "$1" "$2" >&2
    exit 1
}

# from_file NAME [DEFAULT]: sets NAME from the file named by NAME_FILE, else leaves it, else gives it the default.
from_file() {
    local name=$1 file_variable="${1}_FILE" default=${2:-}
    if [[ -n ${!name:-} && -n ${!file_variable:-} ]]; then
        refuse "both \"$name\" and \"$file_variable\" are set" "set one of them"
    fi
    if [[ -n ${!file_variable:-} ]]; then
        printf -v "$name" '%s' "$(< "${!file_variable}")"
        unset "$file_variable"
    fi
    printf -v "$name" '%s' "${!name:-$default}"
}

# In the data directory that the image chooses itself, a new cluster beside an existing one is a mistake. From 18 on, so is
# one beside a volume in the place of before. A data directory that is given in PGDATA is not looked into for this.
refuse_beside_others() {
    local directory
    local -a found=()
    if [[ $PGDATA != "/var/lib/postgresql/$PG_MAJOR/docker" ]]; then return; fi
    for directory in /var/lib/postgresql /var/lib/postgresql/data /var/lib/postgresql/*/docker; do
        if [[ -s $directory/PG_VERSION ]]; then found+=("$directory"); fi
    done
    if ((${#found[@]} == 0 && PG_MAJOR >= 18)) && mountpoint --quiet /var/lib/postgresql/data; then
        found+=('/var/lib/postgresql/data (unused mount/volume)')
    fi
    if ((${#found[@]})); then
        refuse "there appears to be PostgreSQL data in: ${found[*]}" \
            'mount one volume at /var/lib/postgresql, and upgrade what is there'
    fi
}

initialise() {
    local method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256} file
    if [[ -z $POSTGRES_PASSWORD && $method != trust ]]; then
        refuse 'the database is uninitialized and no superuser password is given' \
            'set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE'
    fi
    refuse_beside_others
    # POSTGRES_INITDB_ARGS is a list of words, as in the official image. initdb leaves nothing when it fails.
    # shellcheck disable=SC2086
    initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") ${POSTGRES_INITDB_ARGS:-}
    printf '\nhost all all all %s\n' "$method" >> "$PGDATA/pg_hba.conf"

    # Only on the socket, so that nobody takes this server for the finished one.
    # Without arguments printf would give one that is empty.
    pg_ctl --pgdata="$PGDATA" --options="-c listen_addresses='' $( (($# == 0)) || printf '%q ' "$@")" --wait start
    local -a client=(psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --no-password)
    export PGPASSWORD=$POSTGRES_PASSWORD
    if [[ $POSTGRES_DB != postgres ]]; then
        "${client[@]}" --dbname postgres --set db="$POSTGRES_DB" <<< 'CREATE DATABASE :"db";'
    fi
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
            *.sh)
                # One that is not executable is read into this shell, as in the official image.
                # shellcheck disable=SC1090
                if [[ -x $file ]]; then "$file"; else source "$file"; fi
                ;;
            *.sql) "${client[@]}" --dbname "$POSTGRES_DB" --file "$file" ;;
        esac
    done
    unset PGPASSWORD
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
    echo 'PostgreSQL init process complete; ready for start up.'
}

# An option alone is an option of the server.
if [[ ${1:0:1} == - ]]; then set -- postgres "$@"; fi
if [[ $1 != postgres ]]; then exec "$@"; fi

from_file POSTGRES_PASSWORD
from_file POSTGRES_USER postgres
from_file POSTGRES_DB "$POSTGRES_USER"
from_file POSTGRES_INITDB_ARGS
if [[ $(id -u) == 0 ]]; then
    # The password's file may be readable for root only, so it has been read by now.
    mkdir -p "$PGDATA" /var/run/postgresql
    chmod 700 "$PGDATA"
    chmod 3775 /var/run/postgresql
    find "$PGDATA" /var/run/postgresql \! -user postgres -exec chown postgres '{}' +
    export POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB POSTGRES_INITDB_ARGS
    exec gosu postgres "${BASH_SOURCE[0]}" "$@"
fi
if [[ ! -s $PGDATA/PG_VERSION ]]; then initialise "${@:2}"; fi
# The server needs none of these, and /proc/1/environ would show them.
unset POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB POSTGRES_INITDB_ARGS
exec "$@"

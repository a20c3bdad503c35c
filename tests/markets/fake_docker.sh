#!/bin/sh
# A docker command for tests: containers are local processes, and every `run` is kept for the judge.
#
# Names, exit statuses, error texts and the fields of `inspect` are those of docker 20.10 (Debian 12) as far as the
# adapter uses them. $FAKE_DOCKER is the state folder. A file there makes it fail: `down` every command (the daemon is
# stopped), `refuse` makes `run` fail after the container was created, `slow` makes `run` start it and not answer.
# (In sh because each call of the adapter makes several of these, and an interpreter would take 60 ms each.)

state=$FAKE_DOCKER
mkdir -p "$state/containers"

now() { date -u +%Y-%m-%dT%H:%M:%S.%NZ; }

fail() {
  echo "$2" >&2
  exit "$1"
}

running() { [ -e "$1/started" ] && [ ! -e "$1/code" ]; }

container() { # ids are the names, so that both find it
  folder="$state/containers/${1#id-}"
  [ -e "$folder/created" ] || fail 1 "Error: No such object: $1"
}

run() {
  printf '%s\0' "$@" >"$state/asked.$$"
  entrypoint= name= labels= environment=
  while case "$1" in -*) ;; *) false ;; esac; do
    case "$1" in
      -d) shift; continue ;;
      --name) name=$2 ;;
      --label) labels="$labels$2
" ;;
      -e) environment="$environment$2
" ;;
      --entrypoint) entrypoint=$2 ;;
      --network | --gpus | --ulimit | --security-opt | --user | --shm-size | -v) ;;
      *) fail 125 "unknown flag: $1" ;;
    esac
    shift 2
  done
  shift # the image
  folder="$state/containers/$name"
  mkdir "$folder" 2>/dev/null ||
    fail 125 "docker: Error response from daemon: Conflict. The container name \"/$name\" is already in use by container \"id-$name\"."
  mv "$state/asked.$$" "$folder/asked"
  printf %s "$labels" >"$folder/labels"
  printf %s "$environment" >"$folder/environment"
  now >"$folder/created"
  [ ! -e "$state/refuse" ] || fail 125 "docker: Error response from daemon: could not select device driver"
  setsid sh -c '
    folder=$1; shift
    ( while IFS= read -r each; do export "$each"; done <"$folder/environment"; exec "$@" ) &
    echo $! >"$folder/pid"
    date -u +%Y-%m-%dT%H:%M:%S.%NZ >"$folder/new"; mv "$folder/new" "$folder/started"
    wait $!
    code=$?
    date -u +%Y-%m-%dT%H:%M:%S.%NZ >"$folder/ended"
    echo $code >"$folder/new"; mv "$folder/new" "$folder/code"
  ' container "$folder" ${entrypoint:+"$entrypoint"} "$@" </dev/null >"$folder/log" 2>&1 &
  until [ -e "$folder/started" ]; do sleep 0.01; done
  echo "id-$name"
  while [ -e "$state/slow" ]; do sleep 0.05; done
}

ps() {
  all= filters=
  while [ $# -gt 0 ]; do
    case "$1" in
      -aq) all=yes ;;
      --filter) filters="$filters ${2#label=}"; shift ;;
    esac
    shift
  done
  for folder in "$state"/containers/*; do
    [ -e "$folder/created" ] || continue
    [ -n "$all" ] || running "$folder" || continue
    for filter in $filters; do
      grep -q "^$filter\(=\|\$\)" "$folder/labels" || continue 2
    done
    echo "id-${folder##*/}"
  done
}

inspect() {
  if [ "$1" = -f ]; then
    container "$3"
    if running "$folder"; then echo true; else echo false; fi
    return
  fi
  between='['
  for each in "$@"; do
    container "$each"
    status=created started=0001-01-01T00:00:00Z ended=0001-01-01T00:00:00Z code=0 pid=0
    if [ -e "$folder/started" ]; then status=running started=$(cat "$folder/started") pid=$(cat "$folder/pid"); fi
    if [ -e "$folder/code" ]; then status=exited ended=$(cat "$folder/ended") code=$(cat "$folder/code") pid=0; fi
    printf '%s{"Id": "id-%s", "Created": "%s",\n' "$between" "${folder##*/}" "$(cat "$folder/created")"
    printf '"State": {"Status": "%s", "Pid": %s, "ExitCode": %s, ' "$status" "$pid" "$code"
    printf '"StartedAt": "%s", "FinishedAt": "%s", "Error": ""},\n' "$started" "$ended"
    printf '"Config": {"Labels": {%s}}}' "$(sed 's/\(.*\)=\(.*\)/"\1": "\2"/' "$folder/labels" | paste -sd,)"
    between=','
  done
  echo ']'
}

[ ! -e "$state/down" ] ||
  fail 1 "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
command=$1
shift
case "$command" in
  run | ps | inspect) "$command" "$@" ;;
  image) [ -e "$state/images/$(printf %s "$2" | tr / _)" ] || fail 1 "Error: No such image: $2" ;;
  pull)
    sleep 0.02 # so that it takes the host measurable time
    mkdir -p "$state/images"
    for each in "$@"; do last=$each; done
    touch "$state/images/$(printf %s "$last" | tr / _)"
    echo "$last" >>"$state/pulled"
    ;;
  kill)
    container "$1"
    running "$folder" || fail 1 "Error response from daemon: Cannot kill container: $1: is not running"
    kill -9 "$(cat "$folder/pid")"
    ;;
  wait)
    container "$1"
    while running "$folder"; do sleep 0.01; done
    cat "$folder/code" 2>/dev/null || echo 0
    ;;
  logs)
    for each in "$@"; do last=$each; done
    container "$last"
    cat "$folder/log"
    ;;
  rm)
    container "$2"
    if running "$folder"; then kill -9 "$(cat "$folder/pid")"; fi
    while running "$folder"; do sleep 0.01; done
    mv "$folder" "$state/removed-${folder##*/}"
    ;;
  *) fail 1 "docker: '$command' is not a docker command." ;;
esac

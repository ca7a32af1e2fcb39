# make_venv DIR EXTRA: a virtual environment in DIR with this package and an extra,
# installed again only when what it depends on has changed.
# Modules are compiled at their first import: most of what is installed never is.
# PYTHON chooses the interpreter; requirements.txt pins the tested versions where it
# is the one they are for.
make_venv() {
  unset PYTHONDONTWRITEBYTECODE
  local dir=$1 extra=$2 python=${PYTHON:-} stamp pins=()
  if [ -z "$python" ]; then
    python=$(command -v python3.11 || command -v python3 || command -v python)
  fi
  if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    pins=(-c requirements.txt)
  fi
  stamp=$(cat setup.py pyproject.toml requirements.txt | cksum; "$python" --version)
  if [ "$(cat "$dir/stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$dir"
    "$python" -m venv "$dir"
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
      ${pins[@]+"${pins[@]}"} -e ".[$extra]"
    echo "$stamp" > "$dir/stamp"
  fi
}

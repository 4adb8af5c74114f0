# Sourced, not run: the virtual environment that all shell entry points share.
#
#   source launch/venv.sh        from the root of the repository
#   make_venv [extras]           makes .venv once and installs bdjax[extras]
#   .venv/bin/python ...
#
# PYTHON names the interpreter (python3, or the newest python3.x found). A .venv
# made here is kept as long as PYTHON is unset or of the same version; one made
# by hand is never removed. Installing is repeated when pyproject.toml changes.

VENV=.venv

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints 'major.minor.micro'; fails where the interpreter is older than 3.11.
python_version() {
  "$1" - 2>/dev/null <<'PY'
import sys
print('.'.join(map(str, sys.version_info[:3])))
sys.exit(sys.version_info < (3, 11))
PY
}

find_python() {
  local name version
  if [[ -n "${PYTHON:-}" ]]; then
    version="$(python_version "$PYTHON")" \
      || fail "PYTHON=$PYTHON is ${version:-not a Python interpreter};" \
        "bdjax needs Python 3.11 or newer."
    echo "$PYTHON"
    return
  fi
  for name in python3 python3.13 python3.12 python3.11; do
    if python_version "$name" >/dev/null; then
      echo "$name"
      return
    fi
  done
  version="$(python_version python3 || true)"
  fail "python3 is ${version:-missing}; bdjax needs Python 3.11 or newer." \
    "Install one, or name it: PYTHON=/path/to/python3.12 bash $0"
}

make_venv() {
  local extras="${1:-}" python wanted found stamp
  found="$(cat "$VENV/made_for" 2>/dev/null || true)"
  if [[ -n "${PYTHON:-}" || ! -x "$VENV/bin/python" ]]; then
    python="$(find_python)"
    wanted="$(python_version "$python")"
    if [[ -n "$found" && "$found" != "$wanted" ]]; then
      echo "Python changes from $found to $wanted: making $VENV anew."
      rm -rf "$VENV"
    fi
    if [[ ! -x "$VENV/bin/python" ]]; then
      "$python" -m venv "$VENV" || {
        rm -rf "$VENV"
        fail "$python cannot make a virtual environment (on Debian and Ubuntu:" \
          "apt install python3-venv)."
      }
      echo "$wanted" >"$VENV/made_for"
    fi
    [[ "$(python_version "$VENV/bin/python")" == "$wanted" ]] \
      || fail "$VENV was made by hand with another Python than" \
        "PYTHON=$PYTHON; remove it or unset PYTHON."
  fi
  python_version "$VENV/bin/python" >/dev/null \
    || fail "$VENV holds a Python older than 3.11 or a broken one; remove it."

  # The stamp is a copy of the pyproject.toml that was installed.
  stamp="$VENV/installed-${extras:-core}.toml"
  if ! cmp -s pyproject.toml "$stamp"; then
    echo "Installing bdjax${extras:+[$extras]} into $VENV ..."
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 \
      || "$VENV/bin/python" -m ensurepip
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
      --editable ".${extras:+[$extras]}"
    cp pyproject.toml "$stamp"
    cp pyproject.toml "$VENV/installed-core.toml"
  fi
}

#!/bin/sh
# Starts a server to try Rolecall out. All state is in .run/, so that a second start continues with it.
set -eu
umask 077
state=$PWD/.run
mkdir -p "$state"
export ROLECALL_DATABASE="${ROLECALL_DATABASE:-sqlite:///$state/rolecall.db}"
export ROLECALL_KEY_FILE="${ROLECALL_KEY_FILE:-$state/rolecall.key}"
export ROLECALL_MAIL_FOLDER="${ROLECALL_MAIL_FOLDER:-$state/mail}"
export ROLECALL_POLICY="${ROLECALL_POLICY:-$PWD/policies}"
export ROLECALL_LISTEN="${ROLECALL_LISTEN:-127.0.0.1:50051}"
unset ROLECALL_TOKEN ROLECALL_ORGANIZATION ROLECALL_ADDRESS

# The token is moved into place only when it is complete; after a start that was interrupted before, a new one is issued.
if [ -s "$state/token" ] && [ -n "$(find "$state/token" -mtime +80)" ]; then
  rm "$state/token" # it is about to expire, after 90 days
fi
if [ ! -s "$state/token" ]; then
  rolecall init --organization acme --owner ann@acme.io --demo >"$state/token.new" 2>"$state/init.log" ||
    rolecall operator tokens issue --organization acme --email ann@acme.io >"$state/token.new" 2>>"$state/init.log" ||
    { cat "$state/init.log" >&2; echo 'To start afresh: make clean' >&2; exit 2; }
  mv "$state/token.new" "$state/token"
fi

# State that an older version made.
rolecall operator db upgrade 2>"$state/upgrade.log" || { cat "$state/upgrade.log" >&2; exit 2; }

cat <<TEXT

The token of ann@acme.io, who owns the organization acme, is in $state/token:

  $(cat "$state/token")

May she see secrets? Paste this into another terminal (an allow):

  ROLECALL_TOKEN=\$(cat '$state/token') grpcurl -plaintext -expand-headers -H 'authorization: Bearer \${ROLECALL_TOKEN}' -d '{"subject": "ann@acme.io", "action": "view", "resource": "secrets/billing"}' $ROLECALL_LISTEN rolecall.v1.AuthorizationService/Check

And viewernosecrets@acme.io? (a deny, explained):

  ROLECALL_TOKEN=\$(cat '$state/token') grpcurl -plaintext -expand-headers -H 'authorization: Bearer \${ROLECALL_TOKEN}' -d '{"subject": "viewernosecrets@acme.io", "action": "view", "resource": "secrets/billing", "explain": true}' $ROLECALL_LISTEN rolecall.v1.AuthorizationService/Check

Without grpcurl:

  ROLECALL_ADDRESS=$ROLECALL_LISTEN ROLECALL_TOKEN=\$(cat '$state/token') '$PWD/.venv/bin/rolecall' check viewernosecrets@acme.io view secrets/billing --explain

Edit $ROLECALL_POLICY/policy.csv while it runs, and policy_test.csv beside it, which must agree: within a second it
answers by them, or says here what is wrong. Ctrl-C stops it, \`make clean\` removes all of it.

TEXT
exec rolecall serve

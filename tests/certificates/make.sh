#!/bin/sh
# Makes every file of this folder anew.
set -eu
cd "$(dirname "$0")"
days=36500
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
locals="DNS:localhost,IP:127.0.0.1,IP:::1"

key ca.key
openssl req -x509 -new -key ca.key -days $days -subj "/CN=ollama-router tests" -out ca.pem \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"

signed() { # name, subject, alternative names
  key "$1.key"
  openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
  printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' "$3" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -days $days -set_serial "0x$(openssl rand -hex 8)" \
    -extfile "$1.ext" -out "$1.pem"
  rm "$1.csr" "$1.ext"
}

signed node node "$locals"
signed renewed renewed "$locals"
signed elsewhere elsewhere "DNS:elsewhere.example"
key stranger.key
openssl req -x509 -new -key stranger.key -days $days -subj "/CN=stranger" -out stranger.pem -addext "subjectAltName=$locals"
rm ca.key

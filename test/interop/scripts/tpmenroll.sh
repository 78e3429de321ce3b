#!/bin/sh
# GlobalSign's estclient with its tpmenroll: the certificate comes encrypted to the TPM that holds the key. TPM is the
# socket of a TPM with an RSA endorsement key at 0x81010001 and its certificate in NV (EK Credential Profile §2.2.1.4).
. "$(dirname "$0")/lib.sh"
export TPM2TOOLS_TCTI="swtpm:path=$TPM"

run tpm2_nvread -C o 0x01C00002 -o ek.der
openssl x509 -inform DER -in ek.der -out ekchain.pem
run tpm2_createprimary -Q -C o -c primary.ctx
tpm2_flushcontext -t
run tpm2_create -Q -C primary.ctx -G ecc256 -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign' -u key.pub -r key.priv -c key.ctx
tpm2_flushcontext -t
run tpm2_evictcontrol -Q -C o -c key.ctx 0x81020042
tpm2_flushcontext -t

cat >estclient.cfg <<CFG
{
  "server": "$EST",
  "additional_path_segment": "$LABEL",
  "explicit_anchor": "$ANCHORS",
  "username": "$EST_USER",
  "password": "$EST_PASSWORD",
  "private_key": {
    "tpm": {
      "device": "$TPM",
      "persistent_handle": $((0x81020042)),
      "ek_handle": $((0x81010001)),
      "ek_certs": "$PWD/ekchain.pem"
    }
  }
}
CFG
chmod 600 estclient.cfg
run estclient cacerts -config estclient.cfg -out cacerts.pem
run estclient tpmenroll -config estclient.cfg -cn "$DEVICE" -out device.pem
run openssl verify -CAfile "$ROOT" -untrusted cacerts.pem device.pem
run openssl x509 -in device.pem -noout -subject -ext certificatePolicies

# The certificate's key is the TPM's.
tpm2_readpublic -Q -c 0x81020042 -f pem -o key.pem
[ "$(cat key.pem)" = "$(openssl x509 -in device.pem -noout -pubkey)" ]

# A key in software under the same TPM's endorsement key is refused.
openssl ecparam -name prime256v1 -genkey -noout -out soft.key
openssl req -new -key soft.key -subj "/CN=$DEVICE" -out soft.csr
refused 'not the key to certify' estclient tpmenroll -config estclient.cfg -csr soft.csr

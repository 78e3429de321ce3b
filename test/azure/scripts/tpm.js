// A device with a TPM, which tss.js reaches by the protocol of Microsoft's TPM simulator.
'use strict';
const tss = require('tss.js');
const {ProvisioningDeviceClient} = require('azure-iot-provisioning-device');
const {Http} = require('azure-iot-provisioning-device-http');
const {TpmSecurityClient, TpmAuthenticationProvider} = require('azure-iot-security-tpm');
const {Client, Message} = require('azure-iot-device');
const {Mqtt} = require('azure-iot-device-mqtt');

// register registers the device; with telemetry it then logs in at its hub, with the key that only its TPM can use.
exports.register = async ({host, idScope, id, tpmHost, tpmPort, telemetry}) => {
  const tpm = new tss.Tpm(true, tpmHost, tpmPort);
  try {
    const security = new TpmSecurityClient(id, tpm);
    const registered = await ProvisioningDeviceClient.create(host, idScope, new Http(), security).register();
    const {assignedHub, deviceId} = registered.registrationState;
    if (telemetry) {
      const client = Client.fromAuthenticationProvider(TpmAuthenticationProvider.fromTpmSecurityClient(deviceId, assignedHub, security), Mqtt);
      await client.open();
      await client.sendEvent(new Message(JSON.stringify(telemetry)));
      await client.close();
    }
    return {assignedHub, deviceId, status: registered.status};
  } finally {
    tpm.close();
  }
};

// keys are what an enrolment needs, and the name that a device has when nobody gave it one.
exports.keys = ({tpmHost, tpmPort}) => new Promise((resolve, reject) => {
  const tpm = new tss.Tpm(true, tpmHost, tpmPort);
  const security = new TpmSecurityClient(undefined, tpm);
  const done = (e, keys) => {
    tpm.close();
    if (e) reject(e);
    else resolve(keys);
  };
  security.getEndorsementKey((e, ek) => e ? done(e) : security.getStorageRootKey((e, srk) => e ? done(e)
    : security.getRegistrationId((e, id) => done(e, e ? null : {id, ek: ek.toString('base64'), srk: srk.toString('base64')}))));
});

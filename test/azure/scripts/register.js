// A device registers with the provisioning service.
'use strict';
const {ProvisioningDeviceClient} = require('azure-iot-provisioning-device');
const {X509Security} = require('azure-iot-security-x509');
const {SymmetricKeySecurityClient} = require('azure-iot-security-symmetric-key');

const transports = {
  http: () => new (require('azure-iot-provisioning-device-http').Http)(),
  mqtt: () => new (require('azure-iot-provisioning-device-mqtt').Mqtt)(),
  ws: () => new (require('azure-iot-provisioning-device-mqtt').MqttWs)(),
};

module.exports = async ({host, idScope, id, transport, cert, key, symmetricKey, payload}) => {
  const security = symmetricKey ? new SymmetricKeySecurityClient(id, symmetricKey) : new X509Security(id, {cert, key});
  const client = ProvisioningDeviceClient.create(host, idScope, transports[transport](), security);
  if (payload) client.setProvisioningPayload(payload);
  return client.register();
};

// A device as its maker writes one for Azure, with Microsoft's SDK for Node.js; nothing in it knows Cradle. It prints what
// it has reached, a word on each line.
'use strict';
const {ProvisioningDeviceClient} = require('azure-iot-provisioning-device');
const {Mqtt: ProvisioningTransport} = require('azure-iot-provisioning-device-mqtt');
const {SymmetricKeySecurityClient} = require('azure-iot-security-symmetric-key');
const {Client, Message} = require('azure-iot-device');
const {Mqtt} = require('azure-iot-device-mqtt');
const fs = require('fs');

const [host, idScope, id, keyFile, seconds] = process.argv.slice(2);
const key = fs.readFileSync(keyFile, 'utf8').trim();

async function main() {
  const security = new SymmetricKeySecurityClient(id, key);
  const {assignedHub, deviceId} = await ProvisioningDeviceClient.create(host, idScope, new ProvisioningTransport(), security).register();
  console.log('registered');

  const client = Client.fromConnectionString(`HostName=${assignedHub};DeviceId=${deviceId};SharedAccessKey=${key}`, Mqtt);
  await client.open();
  console.log('connected');

  const twin = await client.getTwin();
  await new Promise((resolve, reject) => twin.properties.reported.update({sdk: 'azure-iot-device', node: process.version}, (e) => e ? reject(e) : resolve()));
  console.log('reported');

  let n = 0;
  const send = async () => {
    const message = new Message(JSON.stringify({device: deviceId, reading: ++n}));
    message.contentType = 'application/json';
    message.contentEncoding = 'utf-8';
    await client.sendEvent(message);
    console.log('sent');
  };
  const timer = setInterval(() => send().catch(failed), 1000 * seconds);
  process.once('SIGTERM', async () => {
    clearInterval(timer);
    await client.close();
    process.exit(0);
  });
  await send();
}

function failed(e) {
  console.error(`${e.name}: ${e.responseBody ?? e.message}`);
  process.exit(1);
}

main().catch(failed);

// What a device does at its hub, each as its maker's application would: with a certificate or a key, over MQTT or WebSocket.
'use strict';
const {Client, Message} = require('azure-iot-device');

const transports = {
  mqtt: () => require('azure-iot-device-mqtt').Mqtt,
  ws: () => require('azure-iot-device-mqtt').MqttWs,
  http: () => require('azure-iot-device-http').Http,
};

const open = async ({hub, id, module, transport, cert, key, symmetricKey}, before = () => {}) => {
  const who = `HostName=${hub};DeviceId=${id}` + (module ? `;ModuleId=${module}` : '');
  const client = Client.fromConnectionString(symmetricKey ? `${who};SharedAccessKey=${symmetricKey}` : `${who};x509=true`, transports[transport]());
  const set = cert && client.setOptions({cert, key});
  if (transport !== 'http') await set; // azure-iot-device-http 1.14.4 takes the options and never says so
  before(client);
  await client.open();
  return client;
};

// connect opens the connection and closes it.
exports.connect = async (device) => (await open(device)).close().then(() => 'connected');

// telemetry sends a message with system and application properties, and then one without any.
exports.telemetry = async (device) => {
  const client = await open(device);
  const message = new Message(JSON.stringify(device.body));
  message.messageId = 'msg-1';
  message.correlationId = 'corr-1';
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.properties.add('seq', '1');
  if (device.odd) message.properties.add('odd key', device.odd); // a header of HTTP has no room for such a name
  await client.sendEvent(message);
  await client.sendEvent(new Message('plain'));
  await client.close();
};

// batch sends several messages in one request, which only HTTPS has.
exports.batch = async (device) => {
  const client = await open(device);
  await client.sendEventBatch([1, 2, 3].map((n) => {
    const m = new Message(`batch ${n}`);
    m.properties.add('n', String(n));
    return m;
  }));
  await client.close();
};

// twin reads the twin, reports a property and takes it back, and waits for a change of the desired ones.
exports.twin = async (device) => {
  const client = await open(device);
  const twin = await client.getTwin();
  const first = JSON.parse(JSON.stringify(twin.properties));
  const desired = new Promise((resolve) => twin.on('properties.desired', (d) => d.interval === device.interval && resolve({...d})));
  const report = (patch) => new Promise((resolve, reject) => twin.properties.reported.update(patch, (e) => e ? reject(e) : resolve()));
  await report({firmware: '1.0', gone: true});
  await report({gone: null, ready: device.interval});
  const change = await desired;
  await client.close();
  return {first, change};
};

// method answers one direct method and says what was asked.
exports.method = async (device) => {
  const client = await open(device);
  const asked = new Promise((resolve) => client.onDeviceMethod('reboot', (request, response) =>
    response.send(200, {rebooting: request.payload.delay}, (e) => resolve({payload: request.payload, failed: e?.message}))));
  const twin = await client.getTwin(); // says that the device listens: the method's subscription was sent before
  await new Promise((resolve, reject) => twin.properties.reported.update({listening: true}, (e) => e ? reject(e) : resolve()));
  const answer = await asked;
  await new Promise((resolve) => setTimeout(resolve, 50));
  await client.close();
  return answer;
};

// receive waits for a message to the device and completes it. It listens before it connects: to a kept session the message comes
// at once, and the SDK drops one that nobody listens for.
exports.receive = async (device) => {
  let got;
  const client = await open(device, (client) => {
    got = new Promise((resolve, reject) => client.on('message', (m) => client.complete(m, (e) => e ? reject(e) : resolve({
      body: m.getData().toString(), messageId: m.messageId, correlationId: m.correlationId,
      properties: Object.fromEntries(m.properties.propertyList.map((p) => [p.key, p.value])),
    }))));
  });
  const answer = await got;
  await client.close();
  return answer;
};

// token sends telemetry with a SAS that somebody else made.
exports.token = async ({sas, transport}) => {
  const client = Client.fromSharedAccessSignature(sas, transports[transport]());
  await client.open();
  await client.sendEvent(new Message('by token'));
  await client.close();
};

// module is a part of a device with a connection of its own: it sends, and reads and reports its own twin.
exports.module = async ({hub, id, module, symmetricKey, transport}) => {
  const {ModuleClient} = require('azure-iot-device');
  const client = ModuleClient.fromConnectionString(`HostName=${hub};DeviceId=${id};ModuleId=${module};SharedAccessKey=${symmetricKey}`, transports[transport]());
  await client.open();
  await client.sendEvent(new Message('from the module'));
  const twin = await client.getTwin();
  await new Promise((resolve, reject) => twin.properties.reported.update({lens: 'clean'}, (e) => e ? reject(e) : resolve()));
  await client.close();
};

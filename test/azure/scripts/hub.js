// What a back end does at the hub.
'use strict';
const {Registry, Client} = require('azure-iothub');

const refusal = async (call) => call.then((v) => ({unexpected: v.responseBody}), (e) => ({name: e.name, message: e.message, status: e.response?.statusCode, body: e.responseBody}));

// device walks an entry of the registry through its life.
exports.device = async ({connection, id}) => {
  const registry = Registry.fromConnectionString(connection);
  const made = (await registry.create({deviceId: id, status: 'enabled'})).responseBody;
  const exists = await refusal(registry.create({deviceId: id}));
  const read = (await registry.get(id)).responseBody;
  const disabled = (await registry.update({...read, status: 'disabled', statusReason: 'test'})).responseBody;
  const listed = (await registry.list()).responseBody.map((d) => d.deviceId);
  const statistics = (await registry.getRegistryStatistics()).responseBody;
  await registry.delete(id);
  const gone = await refusal(registry.get(id));
  return {made, exists, disabled, listed, statistics, gone};
};

// bulk makes and removes several entries at once.
exports.bulk = async ({connection, ids}) => {
  const registry = Registry.fromConnectionString(connection);
  const added = (await registry.addDevices(ids.map((deviceId) => ({deviceId})))).responseBody;
  const updated = (await registry.updateDevices(ids.map((deviceId) => ({deviceId, status: 'disabled'})), true)).responseBody;
  const found = (await registry.get(ids[0])).responseBody;
  const removed = (await registry.removeDevices(ids.map((deviceId) => ({deviceId})), true)).responseBody;
  const gone = await refusal(registry.get(ids[0]));
  return {added, updated, found, removed, gone};
};

// modules walks a module identity through its life.
exports.modules = async ({connection, id}) => {
  const registry = Registry.fromConnectionString(connection);
  await registry.create({deviceId: id});
  const made = (await registry.addModule({deviceId: id, moduleId: 'camera', managedBy: 'tester'})).responseBody;
  const listed = (await registry.getModulesOnDevice(id)).responseBody.map((m) => m.moduleId);
  const read = (await registry.getModule(id, 'camera')).responseBody;
  const twin = (await registry.getModuleTwin(id, 'camera')).responseBody;
  await registry.removeModule(id, 'camera');
  const left = (await registry.getModulesOnDevice(id)).responseBody.length;
  await registry.delete(id);
  return {made, listed, read, twin, left};
};

// twin reads and changes a twin, with an etag that is good and one that is not.
exports.twin = async ({connection, id}) => {
  const registry = Registry.fromConnectionString(connection);
  const before = (await registry.getTwin(id)).responseBody;
  const after = (await registry.updateTwin(id, {tags: {site: 'north'}, properties: {desired: {interval: 5, gone: 1}}}, before.etag)).responseBody;
  const stale = await refusal(registry.updateTwin(id, {tags: {site: 'south'}}, before.etag));
  const last = (await registry.updateTwin(id, {properties: {desired: {gone: null}}}, '*')).responseBody;
  return {before: strip(before), after: strip(after), stale, last: strip(last)};
};
const strip = (twin) => JSON.parse(JSON.stringify({deviceId: twin.deviceId, etag: twin.etag, version: twin.version, tags: twin.tags, properties: twin.properties}));

exports.getTwin = async ({connection, id}) => strip((await Registry.fromConnectionString(connection).getTwin(id)).responseBody);
exports.patchTwin = async ({connection, id, patch}) => strip((await Registry.fromConnectionString(connection).updateTwin(id, patch, '*')).responseBody);
exports.getDevice = async ({connection, id}) => (await Registry.fromConnectionString(connection).get(id)).responseBody;
exports.create = async ({connection, device}) => (await Registry.fromConnectionString(connection).create(device)).responseBody;

// method calls a direct method.
exports.method = async ({connection, id, name, payload}) =>
  (await Client.fromConnectionString(connection).invokeDeviceMethod(id, {methodName: name, payload, responseTimeoutInSeconds: 10, connectTimeoutInSeconds: 0})).result;

// query reads all pages of a query.
exports.query = async ({connection, query, pageSize}) => {
  const q = Registry.fromConnectionString(connection).createQuery(query, pageSize);
  const pages = [];
  while (q.hasMoreResults) pages.push((await q.next(q.continuationToken)).result);
  return pages;
};

// disable bars a device from the hub.
exports.disable = async ({connection, id}) => {
  const registry = Registry.fromConnectionString(connection);
  const device = (await registry.get(id)).responseBody;
  await registry.update({...device, status: 'disabled', statusReason: 'stolen'});
};

// addModule gives a device a module and returns its key.
exports.addModule = async ({connection, id, module}) => {
  const registry = Registry.fromConnectionString(connection);
  await registry.addModule({deviceId: id, moduleId: module});
  return (await registry.getModule(id, module)).responseBody.authentication.symmetricKey.primaryKey;
};
exports.getModuleTwin = async ({connection, id, module}) => strip((await Registry.fromConnectionString(connection).getModuleTwin(id, module)).responseBody);

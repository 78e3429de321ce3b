// What a back end does at the provisioning service.
'use strict';
const {ProvisioningServiceClient} = require('azure-iot-provisioning-service');

const pages = async (query) => {
  const out = [];
  do {
    const {responseBody} = await query.next(query.continuationToken);
    out.push(responseBody);
  } while (query.hasMoreResults);
  return out;
};

const refusal = async (call) => call.then((v) => ({unexpected: v}), (e) => ({name: e.name, status: e.response?.statusCode, body: e.responseBody}));

// bulk in its promise form never settles (azure-iot-provisioning-service 1.11.2); the callback form works.
const bulk = (client, operation) => new Promise((resolve, reject) =>
  client.runBulkEnrollmentOperation(operation, (e, result) => e ? reject(e) : resolve(result)));

// put makes one enrolment or group, get reads and remove deletes it.
exports.put = async ({connection, group, enrolment}) => {
  const client = ProvisioningServiceClient.fromConnectionString(connection);
  const {responseBody} = group ? await client.createOrUpdateEnrollmentGroup(group) : await client.createOrUpdateIndividualEnrollment(enrolment);
  return responseBody;
};
exports.get = async ({connection, group, enrolment, registration}) => {
  const client = ProvisioningServiceClient.fromConnectionString(connection);
  const {responseBody} = group ? await client.getEnrollmentGroup(group) : enrolment ? await client.getIndividualEnrollment(enrolment)
    : await client.getDeviceRegistrationState(registration);
  return responseBody;
};
exports.remove = async ({connection, group, enrolment, registration, etag}) => {
  const client = ProvisioningServiceClient.fromConnectionString(connection);
  if (group) await client.deleteEnrollmentGroup(group, etag);
  else if (enrolment) await client.deleteIndividualEnrollment(enrolment, etag);
  else await client.deleteDeviceRegistrationState(registration, etag);
};

// group walks a group through its life.
exports.group = async ({connection, id, cert, next}) => {
  const client = ProvisioningServiceClient.fromConnectionString(connection);
  const made = (await client.createOrUpdateEnrollmentGroup({enrollmentGroupId: id, provisioningStatus: 'enabled',
    attestation: {type: 'x509', x509: {signingCertificates: {primary: {certificate: cert}}}}})).responseBody;
  const stale = made.etag;
  const read = (await client.getEnrollmentGroup(id)).responseBody;
  read.attestation.x509.signingCertificates = {primary: {certificate: cert}, secondary: {certificate: next}};
  const changed = (await client.createOrUpdateEnrollmentGroup(read)).responseBody;
  const refusedChange = await refusal(client.createOrUpdateEnrollmentGroup({...read, provisioningStatus: 'disabled', etag: stale}));
  const refusedDelete = await refusal(client.deleteEnrollmentGroup(id, stale));
  const found = (await pages(client.createEnrollmentGroupQuery({query: '*'}, 1))).flat().map((g) => g.enrollmentGroupId);
  await client.deleteEnrollmentGroup(changed);
  const gone = await refusal(client.getEnrollmentGroup(id));
  return {made, changed, refusedChange, refusedDelete, found, gone};
};

// individual does the same with an individual enrolment, and reads its keys.
exports.individual = async ({connection, id}) => {
  const client = ProvisioningServiceClient.fromConnectionString(connection);
  const made = (await client.createOrUpdateIndividualEnrollment({registrationId: id, deviceId: id + '-device', provisioningStatus: 'enabled',
    attestation: {type: 'symmetricKey'}, initialTwin: {tags: {site: 'north'}, properties: {desired: {interval: 7}}}})).responseBody;
  const keys = (await client.getIndividualEnrollmentAttestationMechanism(id)).responseBody;
  const changed = (await client.createOrUpdateIndividualEnrollment({...made, provisioningStatus: 'disabled'})).responseBody;
  const refusedChange = await refusal(client.createOrUpdateIndividualEnrollment({...made, provisioningStatus: 'enabled'}));
  await client.deleteIndividualEnrollment(changed);
  const gone = await refusal(client.getIndividualEnrollment(id));
  return {made, keys, changed, refusedChange, gone};
};

// bulk makes, queries page by page and deletes several.
exports.bulk = async ({connection, ids, pageSize}) => {
  const client = ProvisioningServiceClient.fromConnectionString(connection);
  const enrollments = ids.map((registrationId) => ({registrationId, attestation: {type: 'symmetricKey'}}));
  const created = await bulk(client, {mode: 'create', enrollments});
  const again = await bulk(client, {mode: 'create', enrollments: [{...enrollments[0], provisioningStatus: 'disabled'}]});
  const found = (await pages(client.createIndividualEnrollmentQuery({query: '*'}, pageSize))).map((p) => p.map((e) => e.registrationId));
  const removed = await bulk(client, {mode: 'delete', enrollments: ids.map((registrationId) => ({registrationId}))});
  return {created, again, found, removed};
};

// keys and groupKeys read the keys of an enrolment and of a group, and registrations lists a group's devices.
exports.keys = async ({connection, id}) =>
  (await ProvisioningServiceClient.fromConnectionString(connection).getIndividualEnrollmentAttestationMechanism(id)).responseBody;
exports.groupKeys = async ({connection, id}) =>
  (await ProvisioningServiceClient.fromConnectionString(connection).getEnrollmentGroupAttestationMechanism(id)).responseBody;
exports.registrations = async ({connection, id, pageSize}) =>
  pages(ProvisioningServiceClient.fromConnectionString(connection).createEnrollmentGroupDeviceRegistrationStateQuery({query: '*'}, id, pageSize));

// byToken reads a group with a bearer token, as a back end with an identity of its own does.
exports.byToken = async ({host, token, group, remove}) => {
  const credential = {getToken: async () => ({token, expiresOnTimestamp: Date.now() + 60000})};
  const client = ProvisioningServiceClient.fromTokenCredential(host, credential);
  if (remove) await client.deleteEnrollmentGroup(group);
  return (await client.getEnrollmentGroup(group)).responseBody;
};

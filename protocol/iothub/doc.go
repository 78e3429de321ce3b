// Package iothub is what a device, a service tool or a provisioning service says to an Azure-style
// IoT hub: MQTT topics and property bags, the device registry's REST messages and client, and the
// event stream's lines and client. It holds no server.
//
// A device connects by MQTT 3.1.1 with its id as client id and the user name of UserName, and
// publishes telemetry to TelemetryTopic; properties travel in the topic as a Bag. Services use the
// registry REST API with a SAS token of one of the hub's policies (protocol/sas). The facts of the wire
// are Azure IoT Hub's, api-version 2021-04-12; the event stream (Events) is Cradle's own, because
// Azure's is AMQP.
package iothub

// Command cradle runs the services of a Cradle installation and is the tool of its operators and builders.
//
//	cradle serve                      EST, admin API, provisioning service and hub on one port
//	cradle serve --role signer        the issuing keys, in a process of their own
//	cradle account create NAME        act one: an account with its CAs and order key
//	cradle order create ...           act two: the customization instructions to the OEM
//	cradle attestation register ...   act three: the operational CA at the provisioning service
//
// and the verbs to look at and change what there is: status, anchors, account, ca, operator, tpm-maker, oem, order, lot, approval,
// device, revoke, release, enrollment, hub, provisioning, audit, backup, restore, service-key, service-token. Every verb has --json. Exit status: 0 done, 1 refused or failed, 2
// wrong usage.
//
// For fault tests: with CRADLE_KILL_AT_COMMIT=WHEN:N in its environment serve kills itself (SIGKILL) before,
// during or after the Nth commit that holds the writing of an open request (internal/sqldb).
package main

import (
	"os"

	"github.com/cradle-iot/cradle/internal/cli"
	"github.com/cradle-iot/cradle/internal/verbs"
)

// commands is the command line.
type commands struct {
	verbs.Globals
	Serve   ServeCmd   `cmd:"" help:"Run the services."`
	Status  StatusCmd  `cmd:"" help:"Show the services and their health."`
	Anchors AnchorsCmd `cmd:"" help:"Write the services CA: what a TLS client must trust."`
	Account struct {
		Create  AccountCreateCmd  `cmd:"" help:"Act one: make an account."`
		Show    AccountShowCmd    `cmd:"" help:"Show an account's EST labels, CAs and profiles."`
		Basic   AccountBasicCmd   `cmd:"" help:"Let clients without evidence in by HTTP Basic at one profile."`
		KEK     AccountKEKCmd     `cmd:"" name:"kek" help:"Keys that encrypt server-generated keys on their way to clients."`
		RA      AccountRACmd      `cmd:"" name:"ra" help:"Let a registration authority ask for its devices at one profile, as a provisioning service does."`
		TrustCA AccountTrustCACmd `cmd:"" name:"trust-ca" help:"Let units with certificates of another CA in at one profile."`
		Profile struct {
			Show ProfileShowCmd `cmd:"" help:"Print profiles as TOML."`
			Set  ProfileSetCmd  `cmd:"" help:"Change profiles, or add some."`
		} `cmd:"" help:"What certificates hold and who may have them."`
	} `cmd:"" help:"Accounts of solution builders."`
	Operator struct {
		Add    OperatorAddCmd    `cmd:"" help:"Make a token for somebody."`
		List   OperatorListCmd   `cmd:"" help:"List operators."`
		Remove OperatorRemoveCmd `cmd:"" help:"End somebody's token."`
	} `cmd:"" help:"Who may use the admin API."`
	CA       caCmds `cmd:"" name:"ca" help:"An account's certification authorities: external roots, key rolls."`
	TPMMaker struct {
		Import   MakerImportCmd `cmd:"" help:"Trust a TPM maker's CA certificates."`
		List     MakerListCmd   `cmd:"" help:"List TPM makers, their certificates, and what is distrusted."`
		Distrust MakerTrustCmd  `cmd:"" help:"Believe a maker, an issuer or one TPM no more, and revoke its devices."`
		Trust    MakerTrustCmd  `cmd:"" help:"Take a distrust back, for devices to come."`
	} `cmd:"" name:"tpm-maker" help:"TPM makers whose endorsement keys are believed."`
	OEM struct {
		Add OEMAddCmd `cmd:"" help:"Register an OEM by its public keys."`
	} `cmd:"" name:"oem" help:"Device makers."`
	Order struct {
		Create   OrderCreateCmd   `cmd:"" help:"Act two: sign an order and register it."`
		Show     OrderShowCmd     `cmd:"" help:"Show an order."`
		Thaw     OrderThawCmd     `cmd:"" help:"Open an order that a loss has frozen."`
		Withdraw OrderWithdrawCmd `cmd:"" help:"End an order; lists the devices affected."`
	} `cmd:"" help:"Orders to OEMs."`
	Attestation struct {
		Register AttestationRegisterCmd `cmd:"" help:"Act three: register the operational CA with the provisioning service."`
	} `cmd:"" help:"The attestation certificate at the provisioning service."`
	Enrollment struct {
		Create EnrollmentCreateCmd `cmd:"" help:"Enrol one device with a symmetric key."`
		Import EnrollmentImportCmd `cmd:"" help:"Add many individual enrolments, a million if need be."`
		List   EnrollmentListCmd   `cmd:"" help:"List individual enrolments."`
		Show   EnrollmentShowCmd   `cmd:"" help:"Show an individual enrolment."`
		Delete EnrollmentDeleteCmd `cmd:"" help:"Delete an individual enrolment."`
		Units  EnrollmentUnitsCmd  `cmd:"" help:"Make a group that admits the units of an order, or of its lots, by their TPMs."`
	} `cmd:"" help:"Individual enrolments at the provisioning service, and groups of an order's units."`
	Lot struct {
		List   LotListCmd   `cmd:"" help:"List an account's lots."`
		Accept LotAcceptCmd `cmd:"" help:"Accept a lot that waits."`
	} `cmd:"" help:"Lots that OEMs closed."`
	Approval struct {
		List    ApprovalListCmd   `cmd:"" help:"List enrolments that wait for an operator."`
		Approve ApprovalDecideCmd `cmd:"" help:"Let an enrolment have its certificate."`
		Deny    ApprovalDecideCmd `cmd:"" help:"Refuse an enrolment."`
	} `cmd:"" help:"Enrolments at profiles that ask for an operator's approval."`
	Device struct {
		List    DeviceListCmd   `cmd:"" help:"List devices."`
		Show    DeviceShowCmd   `cmd:"" help:"Show a device, its credentials and chain."`
		Suspend DeviceChangeCmd `cmd:"" help:"Refuse a device until it is released."`
		Release DeviceChangeCmd `cmd:"" help:"Let a suspended device work again."`
		Heal    DeviceHealCmd   `cmd:"" help:"Lift the quarantine of credentials that began without evidence."`
		Revoke  DeviceChangeCmd `cmd:"" help:"Revoke a device for good."`
		Retire  DeviceChangeCmd `cmd:"" help:"Take a device out of service for good."`
	} `cmd:"" help:"Devices."`
	Backup  BackupCmd `cmd:"" help:"Copy an installation on SQLite into one file, while it serves."`
	Restore struct {
		Archive     RestoreCmd            `cmd:"" default:"withargs" help:"Make a data folder from a backup."`
		Mark        RestoreMarkCmd        `cmd:"" help:"Say that a store was restored by other means, as pg_restore."`
		Status      RestoreStatusCmd      `cmd:"" help:"Show which logs have not caught up."`
		CatchUp     RestoreCatchUpCmd     `cmd:"" help:"Take over what newer audit exports hold."`
		DeclareLost RestoreDeclareLostCmd `cmd:"" help:"Give up what is newer than the backup and lost for good."`
	} `cmd:"" help:"After a loss: from a backup back to service."`
	Revoke  RevokeCmd `cmd:"" help:"Revoke or suspend a certificate, a device, or a whole set of devices."`
	Release RevokeCmd `cmd:"" help:"Release what is suspended: a certificate, a device, or a set."`
	Hub     struct {
		Events       HubEventsCmd       `cmd:"" help:"Read telemetry as JSON lines."`
		EventSources HubEventSourcesCmd `cmd:"" name:"event-sources" help:"Show or set which events a hub has beside telemetry."`
		CA           struct {
			Add    HubCAAddCmd    `cmd:"" help:"Let devices of type certificateAuthority in that have a certificate of this CA."`
			List   HubCAListCmd   `cmd:"" help:"List the CAs."`
			Remove HubCARemoveCmd `cmd:"" help:"Let them in no more, and disconnect them."`
		} `cmd:"" name:"ca" help:"CAs of devices' certificates that are not named one by one in the registry."`
	} `cmd:"" help:"Hubs."`
	Audit struct {
		Export  AuditExportCmd  `cmd:"" help:"Export a log with its records."`
		Verify  AuditVerifyCmd  `cmd:"" help:"Verify an export offline."`
		Cosign  AuditCosignCmd  `cmd:"" help:"Hand in a checkpoint that a witness cosigned."`
		Publish AuditPublishCmd `cmd:"" help:"Let anybody read the log's tiles."`
		Witness struct {
			Init   WitnessInitCmd   `cmd:"" help:"Make a witness's key."`
			Add    WitnessAddCmd    `cmd:"" help:"Take a witness's cosignatures."`
			List   WitnessListCmd   `cmd:"" help:"List a log's witnesses."`
			Remove WitnessRemoveCmd `cmd:"" help:"Take no further cosignatures of a witness."`
		} `cmd:"" help:"Witnesses of the log (C2SP tlog-cosignature)."`
	} `cmd:"" help:"The tamper-evident log."`
	Provisioning provisioningCmds `cmd:"" help:"The provisioning service: linked hubs, registrations, allocation webhooks."`
	ServiceKey   struct {
		Show ServiceKeyCmd `cmd:"" help:"Show an Azure-style connection string."`
	} `cmd:"" name:"service-key" help:"Keys of the service APIs."`
	ServiceToken ServiceTokenCmd `cmd:"" name:"service-token" help:"Make a bearer token for a service API, with few rights and a short life."`
}

func main() {
	var c commands
	c.Approval.Approve.verb, c.Approval.Deny.verb = "approve", "deny"
	c.Device.Suspend.change, c.Device.Release.change = "suspend", "release"
	c.Release.release, c.TPMMaker.Trust.trust = true, true
	c.Device.Revoke.change, c.Device.Retire.change = "revoke", "retire"
	ctx, stop := cli.Context()
	defer stop()
	os.Exit(verbs.Program{Name: "cradle", Description: "Zero-touch provisioning for IoT fleets.", Grammar: &c, Stdout: os.Stdout, Stderr: os.Stderr}.Run(ctx, os.Args[1:]))
}

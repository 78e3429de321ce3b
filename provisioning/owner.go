package provisioning

import (
	"context"
	"strings"

	"github.com/cradle-iot/cradle"
)

// Owners is what the credential provider says of those to whom devices belong.
type Owners interface {
	// CheckAccount is Invalid when the account does not exist or, with a policy, has no such profile.
	CheckAccount(ctx context.Context, account cradle.AccountID, policy string) error
	// CheckUnits is Invalid when the account has no such order or lot, or a lot is of another order.
	CheckUnits(ctx context.Context, u Units) error
}

// checkOwner refuses terms that name an account, an order, a lot or a credential policy that does not exist: otherwise nobody would hear of it
// before a device registers.
func (s *Service) checkOwner(ctx context.Context, account cradle.AccountID, a Attestation, t Terms) error {
	if s.owners == nil {
		return nil
	}
	if a.Kind == TPMUnits {
		account = a.Units.Account
	}
	if account != "" {
		if err := s.owners.CheckAccount(ctx, account, ""); err != nil {
			return err
		}
	}
	if a.Kind == TPMUnits {
		if err := s.owners.CheckUnits(ctx, a.Units); err != nil {
			return err
		}
	}
	certified := a.Kind == X509CA || a.Kind == X509Client // then the account may be the certificate's
	if t.CredentialPolicy == "" || account == "" && certified && !strings.Contains(t.CredentialPolicy, "-") {
		return nil
	}
	of, policy, err := credentialPolicy(t.CredentialPolicy, account)
	if err != nil {
		return err
	}
	return s.owners.CheckAccount(ctx, of, policy)
}

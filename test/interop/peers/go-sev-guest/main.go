// Judges SNP evidence with go-sev-guest: its verify package (signatures up to a root) and its validate package (what a report says).
// Prints "verified", or the library's error with exit status 1.
package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
)

var (
	product     = flag.String("product", "", "Milan, Genoa or Turin")
	report      = flag.String("report", "", "file with a report")
	table       = flag.String("table", "", "file with the certificate table of an extended guest request")
	roots       = flag.String("roots", "", "file with ASK or ASVK, then ARK, in PEM; AMD's, which the library has, without it")
	server      = flag.String("kds", "", "key distribution server to ask in place of AMD's; implies a check of revocation")
	parts       = flag.Bool("parts", false, "chain and report's signature alone: without the library's reading of AMD's extensions")
	measurement = flag.String("measurement", "", "hex")
	reportData  = flag.String("report-data", "", "hex")
	vmpl        = flag.Int("vmpl", 0, "of the report")
)

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func read(path string) []byte {
	contents, err := os.ReadFile(path)
	check(err)
	return contents
}

func fromHex(text string) []byte {
	if text == "" {
		return nil
	}
	decoded, err := hex.DecodeString(text)
	check(err)
	return decoded
}

// otherServer asks a server in place of AMD's, once.
type otherServer struct{ base string }

func (s otherServer) Get(url string) ([]byte, error) {
	response, err := http.Get(strings.Replace(url, "https://kdsintf.amd.com", s.base, 1))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d", url, response.StatusCode)
	}
	return io.ReadAll(response.Body)
}

// amdChains are the library's own: ASK and ARK, ASVK and ARK.
var amdChains = map[string][2][]byte{
	"Milan": {trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
	"Genoa": {trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
	"Turin": {trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
}

func trustedRoot() *trust.AMDRootCerts {
	root := trust.AMDRootCertsProduct(*product)
	if *roots != "" {
		check(root.FromKDSCertBytes(read(*roots)))
		return root
	}
	root.ProductCerts = new(trust.ProductCerts)
	for _, chain := range amdChains[*product] {
		check(root.ProductCerts.FromKDSCertBytes(bytes.TrimSpace(chain)))
	}
	return root
}

// verifyParts is what the library can do for a key whose extensions it does not know.
func verifyParts(raw []byte, chain *sevsnp.CertificateChain, signer abi.ReportSigner) {
	der := chain.GetVcekCert()
	if signer == abi.VlekReportSigner {
		der = chain.GetVlekCert()
	}
	leaf, err := x509.ParseCertificate(der)
	check(err)
	_, err = leaf.Verify(*trustedRoot().X509Options(time.Now(), signer))
	check(err)
	check(verify.SnpReportSignature(raw, leaf))
}

func main() {
	flag.Parse()
	raw := read(*report)
	evidence := raw
	if *table != "" {
		evidence = append(append([]byte{}, raw...), read(*table)...)
	}
	attestation, err := abi.ReportCertsToProto(evidence)
	check(err)
	signer, err := abi.ParseSignerInfo(attestation.GetReport().GetSignerInfo())
	check(err)
	if *parts {
		verifyParts(raw, attestation.GetCertificateChain(), signer.SigningKey)
		fmt.Println("verified")
		return
	}
	expected, err := kds.ParseProductLine(*product)
	check(err)
	options := verify.DefaultOptions()
	options.TrustedRoots = map[string][]*trust.AMDRootCerts{*product: {trustedRoot()}}
	options.DisableCertFetching = *server == ""
	options.CheckRevocations = *server != ""
	options.Product = expected
	options.Getter = otherServer{*server}
	check(verify.SnpAttestation(attestation, options))
	check(validate.SnpAttestation(attestation, &validate.Options{
		GuestPolicy: abi.SnpPolicy{SMT: true},
		Measurement: fromHex(*measurement),
		ReportData:  fromHex(*reportData),
		VMPL:        vmpl,
	}))
	fmt.Println("verified")
}

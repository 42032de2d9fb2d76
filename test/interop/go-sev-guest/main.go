// Verifies a report with go-sev-guest: main PRODUCT REPORT VCEK ASK ARK [amd]. The root is the given ARK, or with "amd" the library's own.
package main

import (
	"crypto/x509"
	"fmt"
	"os"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
)

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func read(path string) []byte {
	bytes, err := os.ReadFile(path)
	check(err)
	return bytes
}

func parse(der []byte) *x509.Certificate {
	certificate, err := x509.ParseCertificate(der)
	check(err)
	return certificate
}

func main() {
	product := os.Args[1]
	report, err := abi.ReportToProto(read(os.Args[2]))
	check(err)
	vcek, ask, ark := read(os.Args[3]), read(os.Args[4]), read(os.Args[5])
	options := verify.DefaultOptions()
	options.DisableCertFetching = true
	if len(os.Args) < 7 {
		root := trust.AMDRootCertsProduct(product)
		root.ProductCerts = &trust.ProductCerts{Ask: parse(ask), Ark: parse(ark)}
		options.TrustedRoots = map[string][]*trust.AMDRootCerts{product: {root}}
	}
	check(verify.SnpAttestation(&sevsnp.Attestation{
		Report:           report,
		CertificateChain: &sevsnp.CertificateChain{VcekCert: vcek, AskCert: ask, ArkCert: ark},
	}, options))
	fmt.Println("verified")
}

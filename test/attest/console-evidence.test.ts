import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { encodeCertificateTable } from '../../src/abi/certificate-table.ts';
import { printedEvidence } from '../../src/attest/index.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

describe('evidence on a console', () => {
  it('is report and certificates, by kind, in PEM', () => {
    const table = encodeCertificateTable([
      { guid: '63da758d-e664-4564-adc5-f4b93be8accd', bytes: Uint8Array.of(0x30, 1, 2) },
      { guid: '4ab7b379-bbac-4fe4-a02f-05aef327c782', bytes: Uint8Array.of(0x30, 3) },
      { guid: '92f81bc3-5811-4d3d-97ff-d19f88dc67ea', bytes: Uint8Array.of(0x30, 4) },
      { guid: 'ecae0c0f-9502-43b1-afa2-0ae2e0d565b6', bytes: Uint8Array.of(9) },
    ]);
    const text = `hello\nSNP-REPORT 0a0bff\r\nSNP-CERTIFICATES ${hex(table)}\ndone\n`;
    expect(printedEvidence(text)).toEqual({
      report: Uint8Array.of(10, 11, 255),
      certificates: [
        { kind: 'VCEK', pem: '-----BEGIN CERTIFICATE-----\nMAEC\n-----END CERTIFICATE-----\n' },
        { kind: 'ASK', pem: '-----BEGIN CERTIFICATE-----\nMAM=\n-----END CERTIFICATE-----\n' },
        { kind: 'CRL', pem: '-----BEGIN X509 CRL-----\nMAQ=\n-----END X509 CRL-----\n' },
        {
          kind: 'ecae0c0f-9502-43b1-afa2-0ae2e0d565b6',
          pem: '-----BEGIN CERTIFICATE-----\nCQ==\n-----END CERTIFICATE-----\n',
        },
      ],
    });
  });

  it('is the last report of several', () => {
    expect(printedEvidence('SNP-REPORT 01\nSNP-REPORT 02\n').report).toEqual(Uint8Array.of(2));
  });

  it.each([
    '',
    'SNP-REPORT',
    'SNP-REPORT ',
    'SNP-REPORT 0',
    'SNP-REPORT 0g',
    'SNP-REPORT 0A',
    ' SNP-REPORT 00',
    'SNP-REPORT 00 00',
    'SNP-CERTIFICATES 00',
  ])('is not there in %j', (text) => {
    expect(printedEvidence(text)).toEqual({});
  });

  it('is found or not, whatever a guest prints, without an error', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.oneof(
            fc.string(),
            fc.uint8Array().map((bytes) => `SNP-CERTIFICATES ${hex(bytes)}`),
          ),
        ),
        (lines) => {
          const { certificates } = printedEvidence(lines.join('\n'));
          expect(certificates === undefined || Array.isArray(certificates)).toBe(true);
        },
      ),
    );
  });
});

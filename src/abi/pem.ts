/** PEM (RFC 7468), written: as AMD's key distribution server sends chains. Whoever judges evidence reads it, in attest/pem.ts. */

/** One block of PEM; `label`: CERTIFICATE, X509 CRL. */
export function writePem(label: string, bytes: Uint8Array): string {
  let binary = '';
  for (const byte of bytes) binary += String.fromCharCode(byte);
  const lines = btoa(binary).match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}

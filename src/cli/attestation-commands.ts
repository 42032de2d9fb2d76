/** The commands of attestation, with their options: measure, verify, report, kds, certs. Each loads its code when it is called. */
import { type Command, Option } from 'commander';

const authorityOptions = (command: Command): Command =>
  command
    .addOption(
      new Option('--state <dir>', 'directory of the authority').default(undefined, '~/.local/state/softcvm'),
    )
    .addOption(
      new Option('--seed <n>', 'an authority that follows from a number, with public keys: for tests'),
    );

/** Adds the commands to `program`. */
export function addAttestationCommands(program: Command): void {
  addMeasure(program);
  addVerify(program);

  const report = program.command('report').description('Look at attestation reports.');
  report
    .command('show')
    .description('Show the fields of a report; nothing is verified.')
    .argument('<file>', 'a report, binary or hex, or what softcvm run printed')
    .option('--json', 'print one JSON object')
    .action(async (file: string, options) => {
      const { showReport } = await import('./report.ts');
      showReport(file, options);
    });

  authorityOptions(
    program
      .command('kds')
      .description("Serve certificates and revocation lists under AMD's URLs. Prints its base URL.")
      .addOption(new Option('--port <n>', '0: any that is free').default('8080'))
      .addOption(new Option('--host <address>', 'address to listen on').default('127.0.0.1'))
      .addOption(new Option('--answer <how>', 'normal, 404, 429, or down: no answer').default('normal'))
      .addOption(
        new Option('--count <n>', 'how many requests get that answer, if it is not normal').default(
          undefined,
          'all',
        ),
      )
      .addOption(new Option('--seconds-per-key <s>', 'a client that asks sooner gets 429').default('0'))
      .addOption(new Option('--quiet', 'do not print requests')),
  ).action(async (options) => {
    const { kds } = await import('./kds.ts');
    process.exitCode = await kds(options);
  });

  authorityOptions(
    program
      .command('certs')
      .description("Print an authority's certificates.")
      .argument('<what>', 'root, chain, vlek-chain, vcek, vlek, table, vlek-table, crl, fingerprint, chips')
      .addOption(
        new Option('--product <name>', 'Milan, Genoa or Turin').default(undefined, 'Milan; of chips all'),
      )
      .addOption(
        new Option('--chip <id>', 'hardware id in hex, of a key or table').default(
          undefined,
          'the first one',
        ),
      )
      .addOption(
        new Option('--tcb <version>', 'TCB_VERSION in hex, of a key or table').default(
          undefined,
          'what the chip reports',
        ),
      )
      .addOption(new Option('--der', 'DER in place of PEM'))
      .addOption(new Option('--out <file>', 'write there').default(undefined, 'stdout')),
  ).action(async (what: string, options) => {
    const { certs } = await import('./certs.ts');
    process.exitCode = await certs(what, options);
  });
}

function addMeasure(program: Command): void {
  program
    .command('measure')
    .description('Print the launch digest that a report of an SNP guest must show.')
    .argument('[image]', 'firmware, ELF or flat image (.bin) of a guest; --ovmf does as sev-snp-measure')
    .addOption(new Option('--mode <mode>', 'snp, or snp:ovmf-hash: the image alone').default('snp'))
    .addOption(new Option('--ovmf <path>', 'firmware image'))
    .addOption(new Option('--vcpus <n>', 'number of vCPUs'))
    .addOption(new Option('--vcpu-type <type>', "QEMU's name: EPYC-Milan, EPYC-Genoa-v1, ..."))
    .addOption(new Option('--vcpu-sig <number>', 'CPUID Fn0000_0001 EAX'))
    .addOption(new Option('--vcpu-family <n>', 'with --vcpu-model and --vcpu-stepping'))
    .addOption(new Option('--vcpu-model <n>'))
    .addOption(new Option('--vcpu-stepping <n>'))
    .addOption(new Option('--guest-features <number>', 'SEV_FEATURES').default(undefined, '0x1'))
    .addOption(
      new Option('--vmm-type <type>', 'qemu, ec2 or gce; in capitals too').default(undefined, 'qemu'),
    )
    .addOption(new Option('--kernel <path>', 'kernel that is measured with the firmware'))
    .addOption(new Option('--initrd <path>'))
    .addOption(new Option('--append <cmdline>'))
    .addOption(new Option('--snp-ovmf-hash <hex>', "the image's digest, from --mode snp:ovmf-hash"))
    .addOption(new Option('--output-format <format>', 'hex or base64').default(undefined, 'hex'))
    .addOption(new Option('--explain', 'list the pages: address, type, content digest, digest so far'))
    .addOption(
      new Option('--diff <image>', 'say where the launch of another image differs; exit status 1 if it does'),
    )
    .addOption(new Option('--json', 'print one JSON object'))
    .action(async (image: string | undefined, options) => {
      const { measure } = await import('./measure.ts');
      process.exitCode = await measure(image, options);
    });
}

function addVerify(program: Command): void {
  program
    .command('verify')
    .description('Judge an attestation report. Exit status 0 only if every check holds.')
    .argument(
      '<report>',
      'binary or hex, or what softcvm run printed (--json, or the console), with its certificates',
    )
    .addOption(
      new Option(
        '--certs <path...>',
        'files or directories: certificates, revocation lists, certificate tables, what softcvm run printed',
      ),
    )
    .addOption(new Option('--kds [url]', "ask a key distribution server; AMD's without a URL"))
    .addOption(new Option('--roots <path...>', 'ARKs to trust: there are no others'))
    .addOption(new Option('--crl <path...>', 'revocation lists'))
    .addOption(new Option('--require-crl', "fail without the root's revocation list"))
    .addOption(new Option('--at <time>', 'judge as of that time').default(undefined, 'now'))
    .addOption(new Option('--product <name>', 'Milan, Genoa or Turin'))
    .addOption(new Option('--measurement <hex...>', 'any of these'))
    .addOption(new Option('--host-data <hex>'))
    .addOption(new Option('--report-data <hex>', 'filled up with zeros to 64 bytes'))
    .addOption(new Option('--chip-id <hex...>', 'any of these'))
    .addOption(new Option('--signing-key <kind>', 'VCEK or VLEK'))
    .addOption(new Option('--vmpl <n>'))
    .addOption(
      new Option('--allow <bits...>', 'of the guest policy: smt, debug, migrate-ma, cxl-allow').default([
        'smt',
      ]),
    )
    .addOption(
      new Option(
        '--demand <bits...>',
        'of the guest policy: single-socket, mem-aes-256-xts, rapl-dis, ciphertext-hiding, page-swap-disable',
      ),
    )
    .addOption(new Option('--guest-policy <number>', 'exactly this policy'))
    .addOption(new Option('--minimum-abi <version>', "least ABI version of the guest's policy: 1.51"))
    .addOption(new Option('--family-id <hex>'))
    .addOption(new Option('--image-id <hex>'))
    .addOption(new Option('--minimum-guest-svn <n>'))
    .addOption(new Option('--id-key-digest <hex...>', 'any of these'))
    .addOption(new Option('--author-key-digest <hex...>', 'any of these'))
    .addOption(new Option('--report-id <hex>'))
    .addOption(new Option('--minimum-tcb <levels>', 'of the reported TCB: bootLoader=4,snp=24,microcode=219'))
    .addOption(new Option('--minimum-launch-tcb <levels>', 'of the TCB at launch'))
    .addOption(new Option('--minimum-firmware <version>', 'committed: 1.55.21'))
    .addOption(new Option('--platform-info <mask>', 'bits that must be set'))
    .addOption(new Option('--maximum-age <seconds>', 'since the report was obtained; it says no time itself'))
    .addOption(new Option('--obtained <time>', 'when that was').default(undefined, "the file's time"))
    .addOption(new Option('--json', 'print one JSON object'))
    .addOption(new Option('--quiet', 'print failing checks alone, in JSON too'))
    .action(async (report: string, options) => {
      const { verify } = await import('./verify.ts');
      process.exitCode = await verify(report, options);
    });
}

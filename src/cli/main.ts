/**
 * `softcvm`: run, doctor, demo, and attestation's (attestation-commands.ts). Commands load their code when called, so that none pays for another's start-up.
 *
 * Exit status of `run`: the guest's code; 2 bad input, 124 timeout, 125 shutdown or error. Of `verify`: 0 if every check holds, 1 if one
 * does not, 2 bad input or no evidence from a key distribution server.
 */
import { Command, CommanderError, Option } from 'commander';
import { StateError } from '../authority/state-error.ts';
import { addAttestationCommands } from './attestation-commands.ts';
import { InputError } from './size.ts';

const EXIT_BAD_INPUT = 2;
const EXIT_ERROR = 125;

/** A reader such as `head` that has seen enough is nothing to speak of. */
function endWithoutOutput(error: NodeJS.ErrnoException): never {
  if (error.code !== 'EPIPE') console.error(`softcvm: stdout: ${error.message}`);
  process.exit(EXIT_ERROR);
}
process.stdout.on('error', endWithoutOutput);

const program = new Command('softcvm')
  .description('A confidential-VM host in software: KVM private memory on any machine.')
  .version('0.1.0')
  .showHelpAfterError('(softcvm --help says more)')
  .exitOverride();

program
  .command('run')
  .description('Run a guest: its console goes to stdout, its exit code becomes the exit status.')
  .argument(
    '<image>',
    'path of a static ELF64 or flat binary (.bin), or the name of a guest that comes along',
  )
  .addOption(
    new Option('--type <type>', 'kind of VM: sw-protected, default or sev-snp').default('sw-protected'),
  )
  .addOption(new Option('--memory <size>', 'RAM; K, M, G are powers of 1024').default('64M'))
  .addOption(new Option('--smp <n>', 'number of vCPUs').default('1'))
  .addOption(
    new Option(
      '--vcpu-type <type>',
      "signature of the vCPUs by QEMU's name: EPYC-Milan, EPYC-Genoa-v1, ...; measured where firmware starts (default: the chip's own)",
    ),
  )
  .addOption(
    new Option(
      '--irqchip <where>',
      'local APICs: split (in the kernel; the guest starts its other vCPUs itself) or off',
    ).default('off'),
  )
  .addOption(
    new Option('--accel <kernel>', "softcvm, or kvm: this machine's own, as far as it goes").default(
      'softcvm',
    ),
  )
  .addOption(new Option('--kernel <version>', 'kernel personality: 7.2 or 6.12').default(undefined, '7.2'))
  .addOption(new Option('--early <list>', 'interfaces in their first form, by comma: private-fault, certs'))
  .addOption(new Option('--seed <n>', 'repeat byte for byte'))
  .addOption(new Option('--gmem-huge', 'guest_memfd in folios of 2 MiB'))
  .addOption(
    new Option('--host-memory <size>', "the host's RAM, at most 4G").default(undefined, 'as the VM needs'),
  )
  .addOption(new Option('--trace <file>', 'write every state change, one JSON object a line'))
  .addOption(new Option('--json', 'print one JSON object at the end in place of the console'))
  .addOption(new Option('--timeout <seconds>', 'end the run after that time'))
  .addOption(
    new Option('--chip <generation>', 'of an SNP guest: milan, genoa or turin').default(undefined, 'milan'),
  )
  .addOption(new Option('--tcb <version>', 'TCB_VERSION of what the chip runs, as 0xdb18000000000004'))
  .addOption(new Option('--policy <number>', 'guest policy').default(undefined, '0x30000'))
  .addOption(new Option('--host-data <hex>', '32 bytes that the report shows'))
  .addOption(new Option('--id-block <file>', '96 bytes, binary or base64; with --id-auth'))
  .addOption(new Option('--id-auth <file>', 'at most 4096 bytes, binary or base64'))
  .addOption(new Option('--author-key', 'the author key of --id-auth counts'))
  .addOption(
    new Option('--certs <file>', 'certificate table for the guest').default(undefined, "the authority's own"),
  )
  .addOption(
    new Option('--certs-busy <n>', 'put requests for certificates off: the first n, or a share such as 25%'),
  )
  .addOption(
    new Option('--signing-key <kind>', "what reports are signed with: VCEK, or VLEK, a provider's").default(
      undefined,
      'VCEK',
    ),
  )
  .addOption(new Option('--guest-data <hex>', '64 bytes for the guest, which its report shows'))
  .addOption(new Option('--guest-kernel <file>', 'kernel whose hash firmware gets (kernel-hashes)'))
  .addOption(new Option('--initrd <file>', 'initial RAM disk, with --guest-kernel'))
  .addOption(new Option('--append <text>', 'command line, with --guest-kernel'))
  .addOption(
    new Option('--state <dir>', "directory of the chip's authority").default(
      undefined,
      'with --seed one that follows from it, else ~/.local/state/softcvm',
    ),
  )
  .action(async (image: string, options) => {
    const { run } = await import('./run.ts');
    // Leaves at once: Node would wait for code that V8 still optimises, and the host would be scrubbed for nobody.
    process.exitCode = await run(image, options, (status) => {
      const { errored } = process.stdout;
      if (errored !== null) endWithoutOutput(errored);
      process.exit(status);
    });
  });

addAttestationCommands(program);

program
  .command('doctor')
  .description('Say what this machine offers, with a hint for each missing thing.')
  .option('--json', 'print a JSON array')
  .action(async (options: { json?: boolean }) => {
    const { doctor } = await import('./doctor.ts');
    doctor(options);
  });

program
  .command('demo')
  .description(
    'Run the guests hello and conversions, then an SNP guest whose report is verified; show what happened.',
  )
  .action(async () => {
    const { demo } = await import('./demo.ts');
    process.exitCode = await demo();
  });

program.parseAsync().catch((error: unknown) => {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : EXIT_BAD_INPUT;
  } else if (error instanceof InputError || error instanceof StateError) {
    console.error(`softcvm: ${error.message}`);
    process.exitCode = EXIT_BAD_INPUT;
  } else {
    console.error(`softcvm: ${error instanceof Error ? error.message : error}`);
    const { SOFTCVM_DEBUG } = process.env;
    if (SOFTCVM_DEBUG !== undefined) console.error(error);
    process.exitCode = EXIT_ERROR;
  }
});
